#include "cli/terminal/conversation.h"

#include <algorithm>

#include "base/utf8.h"
#include "server/api/build_request.h"
#include "server/api/openai.h"
#include "text/chat/call_parser.h"

namespace gemma4 {
namespace {

size_t images_in(const Message& message) {
  return static_cast<size_t>(std::ranges::count(message.content, ContentPart::kImage, &ContentPart::type));
}

std::string text_of(const Message& message) {
  std::string text;
  for (const ContentPart& part : message.content) text += part.text;
  return text;
}

const char* media_type(const std::string& bytes) {
  if (bytes.starts_with("\x89PNG")) return "image/png";
  if (bytes.starts_with("\xff\xd8")) return "image/jpeg";
  if (bytes.starts_with("GIF8")) return "image/gif";
  if (bytes.starts_with("RIFF")) return "image/webp";
  return bytes.starts_with("BM") ? "image/bmp" : "image/heif";
}

Json content_of(const Message& message, const std::vector<std::string>& images, size_t& image) {
  if (images_in(message) == 0) return utf8_repair(text_of(message));
  Json content = Json::array();
  for (const ContentPart& part : message.content) {
    if (part.type == ContentPart::kText) {
      content.push_back({{"type", "text"}, {"text", utf8_repair(part.text)}});
      continue;
    }
    const std::string& bytes = images[image++];
    const std::string url = std::string("data:") + media_type(bytes) + ";base64," + encode_base64(bytes);
    content.push_back({{"type", "image_url"}, {"image_url", {{"url", url}}}});
  }
  return content;
}

Json to_json(const Message& message, const std::vector<std::string>& images, size_t& image) {
  Json json = {{"role", message.role}, {"content", content_of(message, images, image)}};
  if (!message.reasoning.empty()) json["reasoning_content"] = message.reasoning;
  for (const ToolCall& call : message.tool_calls) {
    json["tool_calls"].push_back(
        {{"id", call.id}, {"type", "function"}, {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  if (message.role == "tool") json["tool_call_id"] = message.tool_call_id;
  return json;
}

Json parsed(const std::string& text) {
  try {
    return parse_body(text);
  } catch (const Error&) {
    throw Error("it is not the JSON that /save writes");
  }
}

bool is_system(const Message& message) { return message.role == "system" || message.role == "developer"; }

}  // namespace

Conversation::Conversation(const Request& base) : request(base) { pending.swap(request.images); }

size_t Conversation::first() const { return !request.messages.empty() && is_system(request.messages[0]) ? 1 : 0; }

void Conversation::say(const std::string& text) {
  Message message;
  message.role = "user";
  for (std::string& image : pending) {
    message.content.push_back({ContentPart::kImage, ""});
    request.images.push_back(std::move(image));
  }
  pending.clear();
  message.content.push_back({ContentPart::kText, text});
  request.messages.push_back(std::move(message));
}

void Conversation::hear(const std::string& text, const std::string& thinking, const std::vector<ToolCall>& calls) {
  Message message = Message::text("assistant", text);
  message.reasoning = thinking;
  message.tool_calls = calls;
  for (size_t i = 0; i < calls.size(); ++i) {
    message.tool_calls[i].arguments = close_arguments(calls[i].arguments);  // a limit may have cut them
    message.tool_calls[i].id = "call_" + std::to_string(request.messages.size()) + "_" + std::to_string(i);
  }
  request.messages.push_back(std::move(message));
}

std::vector<ToolCall> Conversation::open_calls() const {
  const auto& messages = request.messages;
  const auto last = std::ranges::find_if(messages.rbegin(), messages.rend(),
                                         [](const Message& message) { return message.role != "tool"; });
  if (last == messages.rend()) return {};
  std::vector<ToolCall> open = last->tool_calls;
  for (auto result = messages.rbegin(); result != last; ++result) {
    std::erase_if(open, [&](const ToolCall& call) { return call.id == result->tool_call_id; });
  }
  return open;
}

void Conversation::add_result(const std::string& text) {
  const std::vector<ToolCall> open = open_calls();
  if (open.empty()) throw Error("no call of a tool waits for a result");
  Message message = Message::text("tool", text);
  message.tool_call_id = open.front().id;
  message.name = open.front().name;
  request.messages.push_back(std::move(message));
}

std::optional<std::string> Conversation::undo() {
  auto& messages = request.messages;
  const auto last = std::ranges::find(messages.rbegin(), messages.rend(), "user", &Message::role);
  if (last == messages.rend()) return std::nullopt;
  const std::string text = text_of(*last);
  const auto from = last.base() - 1;
  for (auto message = from; message != messages.end(); ++message) {
    request.images.resize(request.images.size() - images_in(*message));
  }
  messages.erase(from, messages.end());
  return text;
}

bool Conversation::drop_answer() {
  auto& messages = request.messages;
  while (messages.size() > first() && messages.back().role != "user" && messages.back().role != "tool") {
    messages.pop_back();
  }
  return messages.size() > first();
}

std::string Conversation::system() const { return first() == 0 ? "" : text_of(request.messages[0]); }

void Conversation::set_system(const std::string& text) {
  if (first() == 1) request.messages.erase(request.messages.begin());
  if (!text.empty()) request.messages.insert(request.messages.begin(), Message::text("system", text));
}

void Conversation::clear() {
  request.messages.resize(first());
  request.images.clear();
  pending.clear();
}

void Conversation::restore(Mark mark) {
  request.messages = std::move(mark.messages);
  pending = std::move(mark.pending);
  request.images.resize(std::min(mark.images, request.images.size()));
}

std::string Conversation::save() const {
  Json body = {{"messages", Json::array()}};
  size_t image = 0;
  for (const Message& message : request.messages) body["messages"].push_back(to_json(message, request.images, image));
  if (!request.tools.empty()) body["tools"] = parse_body(request.tools);
  return body.dump(1) + "\n";
}

void Conversation::load(const std::string& text) {
  ApiContext context;
  context.fetch = [](const std::string& url, const std::string&) -> std::string {
    throw Error("the picture " + url.substr(0, 100) + " is on a server; only data: URLs are read");
  };
  context.warnings = std::make_shared<Warnings>();
  const Json json = parsed(text);
  Fields body(json, "");
  const Request loaded = parse_chat_prompt(body, context);
  request.messages = loaded.messages;
  request.images = loaded.images;
  if (!loaded.tools.empty()) request.tools = loaded.tools;
  pending.clear();
}

}  // namespace gemma4
