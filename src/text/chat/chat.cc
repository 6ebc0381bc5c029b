#include "text/chat/chat.h"

#include <algorithm>
#include <unordered_map>

#include "base/check.h"
#include "base/json.h"
#include "base/utf8.h"
#include "text/chat/piece_writer.h"
#include "text/chat/tool_format.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;

// White space that Python's str.strip() removes.
bool is_space(uint32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

std::string_view trim_end(std::string_view text) {
  while (!text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80) --begin;
    if (utf8_length(text.substr(begin)) != text.size() - begin || !is_space(utf8_point(text.substr(begin)))) break;
    text = text.substr(0, begin);
  }
  return text;
}

std::string_view trim(std::string_view text) {
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (length == 0 || !is_space(utf8_point(text))) break;
    text.remove_prefix(length);
  }
  return trim_end(text);
}

// Removes <|channel>...<channel|>: the model does not see the thoughts of its earlier answers. A thought without an end
// extends to the end of the text.
std::string strip_thinking(std::string_view text) {
  constexpr std::string_view kOpen = "<|channel>", kClose = "<channel|>";
  std::string result;
  while (true) {
    const size_t close = text.find(kClose);
    const std::string_view before = text.substr(0, close);
    result += before.substr(0, before.find(kOpen));
    if (close == std::string_view::npos) return std::string(trim(result));
    text.remove_prefix(close + kClose.size());
  }
}

std::string joined_text(const Message& message) {
  std::string text;
  for (const ContentPart& part : message.content) {
    if (part.type == ContentPart::kText) text += part.text;
  }
  return text;
}

bool is_model(const Message& message) { return message.role == "assistant" || message.role == "model"; }

std::string answer_text(const Message& message) {
  std::string text;
  for (const ContentPart& part : message.content) text += strip_thinking(part.text);
  return text;
}

// Leaves out empty answers at the end. `begun`: the last message is the beginning of an answer.
std::span<const Message> without_empty_answers(std::span<const Message> messages, bool& begun) {
  begun = false;
  while (!messages.empty() && is_model(messages.back())) {
    const Message& last = messages.back();
    if (!last.tool_calls.empty() || !last.tool_responses.empty()) break;
    begun = !answer_text(last).empty() || !last.reasoning.empty();
    if (begun) break;
    messages = messages.first(messages.size() - 1);
  }
  return messages;
}

class ChatRenderer {
 public:
  ChatRenderer(std::span<const Message> messages, std::string_view tools, const ChatOptions& options)
      : messages_(messages), options_(options), july_(options.chat_template == ChatTemplate::kJuly) {
    if (options_.continue_final) messages_ = without_empty_answers(messages, begun_);
    for (const Message& message : messages_) {
      roles_.push_back(role_of(message));
      first_image_.push_back(images_);
      for (const ContentPart& part : message.content) images_ += part.type == ContentPart::kImage;
    }
    if (!trim(tools).empty()) tools_ = parse_json(tools, "tools");
    if (!tools_.is_null() && !tools_.is_array()) throw Error("tools: not a JSON array");
  }

  std::vector<Piece> render() {
    out_.control("<bos>");
    const bool system_first = !messages_.empty() && roles_[0] == "system";
    if (options_.enable_thinking || !tools_.empty() || system_first) write_head(system_first);
    for (size_t i = 0; i < messages_.size(); ++i) {
      if (roles_[i] == "user") last_user_ = static_cast<int>(i);
    }
    bool called = false;  // the last message that is no tool's has calls, and no answers in itself
    for (size_t i = system_first ? 1 : 0; i < messages_.size(); ++i) {
      if (roles_[i] != "tool") {
        write_message(i);
        called = !messages_[i].tool_calls.empty() && messages_[i].tool_responses.empty();
      } else if (!called) {
        throw Error("messages: message " + std::to_string(i) + " has the role tool but follows no tool call");
      }
    }
    if (options_.add_generation_prompt && !begun_) write_generation_prompt();
    return out_.take();
  }

 private:
  // How the prompt stands after a message.
  enum class Open {
    kNothing,       // the turn has ended
    kCall,          // a result is awaited
    kResult,        // a result came: the model goes on in its turn
    kClosedResult,  // a result came, and text beside its call ended the turn
  };

  static std::string role_of(const Message& message) {
    if (message.role == "assistant") return "model";
    if (message.role == "developer") return "system";
    for (const char* role : {"system", "user", "model", "tool"}) {
      if (message.role == role) return role;
    }
    throw Error("messages: the role '" + message.role + "' is none of system, developer, user, assistant, tool");
  }

  void write_head(bool system_first) {
    out_.control("<|turn>");
    out_.text("system\n");
    if (options_.enable_thinking) {
      out_.control("<|think|>");
      out_.text("\n");
    }
    if (system_first) {
      const std::vector<ContentPart>& parts = messages_[0].content;
      int image = 0;
      for (const ContentPart& part : parts) {
        if (part.type == ContentPart::kImage) {
          out_.image(image++);
          continue;
        }
        out_.text(trim(part.text));
        if (parts.size() > 1) out_.text(" ");
      }
    }
    ToolSchemas schemas;
    for (const Json& tool : tools_) {
      out_.control("<|tool>");
      write_declaration(tool, schemas, out_);
      out_.control("<tool|>");
    }
    end_turn();
  }

  void end_turn() {
    out_.control("<turn|>");
    out_.text("\n");
  }

  void write_message(size_t i) {
    const Message& message = messages_[i];
    const bool model = roles_[i] == "model", begun = begun_ && i + 1 == messages_.size();
    if (!model && (!message.tool_calls.empty() || !message.tool_responses.empty())) {
      throw Error("messages: only the assistant can call tools, not " + message.role);
    }
    if (!model || !follows_model(i)) {
      out_.control("<|turn>");
      out_.text(roles_[i] + "\n");
    }
    if (model && keeps_thought(i, begun)) {
      out_.control("<|channel>");
      out_.text("thought\n" + message.reasoning + "\n");
      out_.control("<channel|>");
    }
    if (begun) return out_.text(answer_text(message));
    for (const ToolCall& call : message.tool_calls) write_call(call);
    const bool responses = write_responses(i);
    const bool content = write_content(i);
    close(i, responses, content);
  }

  // Spring's template keeps the thought of a turn that calls tools. July's keeps every one since the user's last
  // message.
  bool keeps_thought(size_t i, bool begun) const {
    const Message& message = messages_[i];
    if (message.reasoning.empty()) return false;
    const bool calls = !message.tool_calls.empty(), late = static_cast<int>(i) > last_user_;
    return begun ||
           (july_ ? late || (options_.preserve_thinking && calls) : calls && (late || options_.preserve_thinking));
  }

  // Ends the turn, or leaves it open for a tool's result or for what the model says next.
  void close(size_t i, bool responses, bool content) {
    const bool calls = !messages_[i].tool_calls.empty();
    size_t next = i + 1;
    while (next < messages_.size() && roles_[next] == "tool") ++next;
    const bool last = next == messages_.size();
    open_ = Open::kNothing;
    if (calls && !responses) {
      if (!last && roles_[next] != "model") return end_turn();  // the call was given up; the templates leave it open
      out_.control("<|tool_response>");
      open_ = Open::kCall;
    } else if (july_ ? (roles_[i] == "model" && !last && roles_[next] == "model") || (responses && !content && last)
                     : responses && !has_content(messages_[i])) {
      if (responses) open_ = Open::kResult;
    } else {
      end_turn();
      if (responses) open_ = Open::kClosedResult;
    }
  }

  void write_generation_prompt() {
    if (open_ == Open::kCall) return;
    const bool result = open_ != Open::kNothing;
    if (open_ != Open::kResult) {  // after kClosedResult the templates leave it out
      out_.control("<|turn>");
      out_.text("model\n");
    }
    if (!options_.enable_thinking && open_ != Open::kResult) {
      out_.control("<|channel>");
      out_.text("thought\n");
      out_.control("<channel|>");
    } else if (options_.enable_thinking && result && july_) {
      out_.control("<|channel>");
      out_.text("thought\n");
    }
  }

  static bool has_content(const Message& message) {
    return std::ranges::any_of(message.content, [](const ContentPart& part) {
      return part.type == ContentPart::kImage || !part.text.empty();
    });
  }

  bool follows_model(size_t i) const {
    while (i-- > 0) {
      if (roles_[i] != "tool") return roles_[i] == "model";
    }
    return false;
  }

  void write_call(const ToolCall& call) {
    if (call.name.empty()) throw Error("messages: a tool call has no name");
    const std::string_view text = trim(call.arguments);
    const Json arguments = text.empty() || text == "null" ? Json::object() : parse_json(call.arguments, call.name);
    if (!arguments.is_object()) throw Error("messages: the arguments of " + call.name + " are not a JSON object");
    out_.control("<|tool_call>");
    out_.text("call:" + call.name + "{");
    write_members(arguments, false, out_);
    out_.text("}");
    out_.control("<tool_call|>");
  }

  bool write_responses(size_t i) {
    const Message& message = messages_[i];
    for (const ToolResponse& response : message.tool_responses) {
      write_response(response.name, parse_json(response.response, "the response of " + response.name));
    }
    if (!message.tool_responses.empty() || message.tool_calls.empty()) return !message.tool_responses.empty();
    std::unordered_map<std::string_view, std::string_view> names;  // of equal ids the last counts
    for (const ToolCall& call : message.tool_calls) names[call.id] = call.name;
    size_t k = i + 1;
    for (; k < messages_.size() && roles_[k] == "tool"; ++k) {
      const Message& result = messages_[k];
      const auto named = names.find(result.tool_call_id);
      write_response(named == names.end() ? result.name : std::string(named->second),
                     result.content.empty() ? Json() : Json(joined_text(result)));
      int image = first_image_[k];
      for (const ContentPart& part : result.content) {
        if (part.type == ContentPart::kImage) out_.image(image++);
      }
    }
    return k > i + 1;
  }

  void write_response(const std::string& name, const Json& response) {
    out_.control("<|tool_response>");
    out_.text("response:" + (name.empty() ? "unknown" : name) + "{");
    if (response.is_object()) {
      write_members(response, false, out_);
    } else {
      out_.text("value:");
      write_value(response, false, out_);
    }
    out_.text("}");
    out_.control("<tool_response|>");
  }

  bool write_content(size_t i) {  // whether there was any
    int image = first_image_[i];
    bool any = false;
    for (const ContentPart& part : messages_[i].content) {
      if (part.type == ContentPart::kImage) {
        out_.image(image++);
        any = true;
        continue;
      }
      const std::string text = roles_[i] == "model" ? strip_thinking(part.text) : std::string(trim(part.text));
      out_.text(text);
      any |= !text.empty();
    }
    return any;
  }

  std::span<const Message> messages_;
  ChatOptions options_;
  bool july_;
  bool begun_ = false;  // the last message is the beginning of the answer
  Json tools_;
  std::vector<std::string> roles_;  // [messages] system, user, model or tool
  std::vector<int> first_image_;    // [messages] the number of its first image
  int images_ = 0;
  int last_user_ = -1;
  Open open_ = Open::kNothing;
  PieceWriter out_{july_ ? "null" : "None"};
};

}  // namespace

Message Message::text(std::string role, std::string text) {
  Message message;
  message.role = std::move(role);
  message.content.push_back({ContentPart::kText, std::move(text)});
  return message;
}

std::vector<Piece> render_chat(std::span<const Message> messages, std::string_view tools, const ChatOptions& options) {
  return ChatRenderer(messages, tools, options).render();
}

BegunAnswer begun_answer(std::span<const Message> messages, const ChatOptions& options) {
  bool begun = false;
  if (options.continue_final) messages = without_empty_answers(messages, begun);
  if (!begun) return {};
  const std::vector<ContentPart>& parts = messages.back().content;
  const std::string_view last = parts.empty() ? std::string_view() : std::string_view(parts.back().text);
  return {answer_text(messages.back()), std::string(last.substr(trim_end(last).size()))};
}

std::vector<Piece> parse_raw(std::string_view prompt, const Tokenizer& tokenizer) {
  PieceWriter out;
  int images = 0;
  for (const Tokenizer::Segment& segment : tokenizer.split_control(prompt)) {
    if (out.empty() && !(segment.control && segment.text == "<bos>")) out.control("<bos>");
    if (!segment.control) {
      out.text(segment.text);
    } else if (segment.text == "<|image|>") {
      out.image(images++);
    } else {
      out.control(segment.text);
    }
  }
  if (out.empty()) out.control("<bos>");
  return out.take();
}

std::string to_text(std::span<const Piece> pieces) {
  std::string text;
  for (const Piece& piece : pieces) text += piece.type == Piece::kImage ? "<|image|>" : piece.text;
  return text;
}

int count_images(std::span<const Piece> pieces) {
  return static_cast<int>(
      std::count_if(pieces.begin(), pieces.end(), [](const Piece& piece) { return piece.type == Piece::kImage; }));
}

Prompt encode_pieces(const Tokenizer& tokenizer, std::span<const Piece> pieces, std::span<const int> soft_tokens,
                     const std::function<void()>& between) {
  if (count_images(pieces) != static_cast<int>(soft_tokens.size())) {
    throw Error("the prompt has places for " + std::to_string(count_images(pieces)) + " images but " +
                std::to_string(soft_tokens.size()) + " came with it");
  }
  Prompt prompt;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (between) between();
    const Piece& piece = pieces[i];
    if (piece.type == Piece::kControl) {
      prompt.ids.push_back(tokenizer.require(piece.text));
    } else if (piece.type == Piece::kImage) {
      CHECK(piece.image >= 0 && piece.image < static_cast<int>(soft_tokens.size()));
      prompt.ids.push_back(tokenizer.require("<|image>"));
      const auto begin = static_cast<int>(prompt.ids.size());
      prompt.ids.insert(prompt.ids.end(), soft_tokens[piece.image], tokenizer.require("<|image|>"));
      prompt.images.push_back({piece.image, begin, static_cast<int>(prompt.ids.size())});
      prompt.ids.push_back(tokenizer.require("<image|>"));
    } else {
      std::string text = piece.text;  // neighbouring texts are encoded as one
      while (i + 1 < pieces.size() && pieces[i + 1].type == Piece::kText) text += pieces[++i].text;
      const std::vector<int32_t> ids = tokenizer.encode(text, false, between);
      prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
    }
  }
  return prompt;
}

}  // namespace gemma4
