#include "server/api/anthropic.h"

#include <algorithm>
#include <memory>

#include "base/exact_json.h"
#include "server/api/build_request.h"
#include "server/api/openai.h"
#include "server/api/tool_list.h"
#include "text/chat/call_parser.h"

namespace gemma4 {
namespace {

// In an error's details: Anthropic's library then goes on without a thread (lib/threads of its version 2.13).
constexpr const char* kThreadUnsupported = "thread_unsupported_request";

std::string at(const std::string& path, size_t index) { return path + "[" + std::to_string(index) + "]"; }

// Content blocks.

void parse_image(Fields& block, Request& request, Message& message, const ApiContext& context) {
  Fields source(block.require("source"), block.where("source"));
  const std::string type = source.required_string("type");
  if (type == "base64") {
    source.ignore({"media_type"});  // the image format is recognised from the bytes
    add_image(request, message,
              decode_base64(expect_string(source.require("data"), source.where("data")), source.where("data")));
  } else if (type == "url") {
    add_image(request, message, image_of_url(source.required_string("url"), context, source.where("url")));
  } else {
    fail_at(source.where("type"), "must be base64 or url");
  }
  source.done();
}

// A string, or blocks of text and images: what is inside of documents and search results.
void parse_inner_content(const Json& content, Request& request, Message& message, const ApiContext& context,
                         const std::string& path) {
  if (content.is_string()) return add_text(message, content.get<std::string>());
  expect_array(content, path);
  for (size_t i = 0; i < content.size(); ++i) {
    Fields block(content[i], at(path, i));
    if (block.required_string("type") == "image") {
      parse_image(block, request, message, context);
    } else {
      block.only("type", {"text"});
      add_text(message, block.required_string("text"));
    }
    block.ignore({"cache_control", "citations"});
    block.done();
  }
}

// A text file: plain, in base64, or as blocks. Its title and context stand before it.
void parse_document(Fields& block, Request& request, Message& message, const ApiContext& context) {
  if (const auto title = block.string("title")) add_text(message, *title + "\n");
  if (const auto text = block.string("context")) add_text(message, *text + "\n");
  Fields source(block.require("source"), block.where("source"));
  const std::string type = source.required_string("type");
  const std::string media_type = source.string("media_type").value_or("text/plain");
  if (type == "text") {
    add_text(message, source.required_string("data"));
  } else if (type == "content") {
    parse_inner_content(source.require("content"), request, message, context, source.where("content"));
  } else if (type == "base64" && media_type.starts_with("text/")) {
    const std::string url = "data:" + media_type + ";base64," + source.required_string("data");
    add_text(message, text_of_url(url, source.where("data")));
  } else {
    fail_at(source.where("type"), "is " + type.substr(0, 40) + " of " + media_type.substr(0, 40) +
                                      "; of documents only texts are read");
  }
  source.done();
  block.hint(context.warnings, "citations", {{{"enabled", false}}});
}

// What a search of the client's own has found.
void parse_search_result(Fields& block, Request& request, Message& message, const ApiContext& context) {
  add_text(message, block.required_string("title") + "\n" + block.required_string("source") + "\n");
  parse_inner_content(block.require("content"), request, message, context, block.where("content"));
  block.hint(context.warnings, "citations", {{{"enabled", false}}});
}

// A block of text or an image, which may stand in user messages, tool results and system prompts.
void parse_plain_block(Fields& block, const std::string& type, Request& request, Message& message,
                       const ApiContext& context) {
  if (type == "text") {
    add_text(message, block.required_string("text"));
    block.ignore({"citations"});
  } else if (type == "image") {
    parse_image(block, request, message, context);
  } else if (type == "document") {
    parse_document(block, request, message, context);
  } else if (type == "search_result") {
    parse_search_result(block, request, message, context);
  } else if (type == "tool_reference" && message.role == "tool") {
    add_text(message, "The tool " + block.required_string("tool_name") + " can be called.\n");  // and is declared
  } else {
    fail_at(block.where("type"), "is '" + type.substr(0, 40) + "', which is not supported here");
  }
}

void parse_plain_content(const Json& content, Request& request, Message& message, const ApiContext& context,
                         const std::string& path) {
  if (content.is_string()) return add_text(message, content.get<std::string>());
  if (!content.is_array()) fail_at(path, "must be a string or an array of blocks");
  for (size_t i = 0; i < content.size(); ++i) {
    Fields block(content[i], at(path, i));
    parse_plain_block(block, block.required_string("type"), request, message, context);
    block.ignore({"cache_control"});
    block.done();
  }
}

void parse_tool_result(Fields& block, Request& request, const ApiContext& context) {
  Message& message = add_message(request, "tool");
  message.tool_call_id = block.required_string("tool_use_id");
  if (block.boolean("is_error").value_or(false)) add_text(message, "Error: ");
  if (const Json* content = block.find("content")) {
    parse_plain_content(*content, request, message, context, block.where("content"));
  }
}

void parse_user(const Json& content, Request& request, const ApiContext& context, const std::string& path) {
  if (!content.is_array()) return parse_plain_content(content, request, add_message(request, "user"), context, path);
  // Tool results become separate messages, before the other content of the user's message.
  bool said = false;
  for (size_t i = 0; i < content.size(); ++i) {
    Fields block(content[i], at(path, i));
    const std::string type = block.required_string("type");
    if (type == "tool_result") {
      if (said) fail_at(at(path, i), "is a tool_result after other content; tool results come first");
      parse_tool_result(block, request, context);
    } else {
      if (!said) add_message(request, "user");
      said = true;
      parse_plain_block(block, type, request, request.messages.back(), context);
    }
    block.ignore({"cache_control"});
    block.done();
  }
  if (content.empty()) fail_at(path, "must not be empty");
}

// What a provider's own tools left in a conversation: server_tool_use, web_search_tool_result, mcp_tool_use, ...
bool is_of_hosted_tool(const std::string& type) {
  return type == "server_tool_use" || type == "mcp_tool_use" || type.ends_with("_tool_result");
}

void parse_assistant(const Json& content, Request& request, const ApiContext& context, const std::string& path) {
  Message& message = add_message(request, "assistant");
  if (content.is_string()) return add_text(message, content.get<std::string>());
  if (!content.is_array()) fail_at(path, "must be a string or an array of blocks");
  for (size_t i = 0; i < content.size(); ++i) {
    Fields block(content[i], at(path, i));
    const std::string type = block.required_string("type");
    if (type == "text") {
      add_text(message, block.required_string("text"));
      block.ignore({"citations"});
    } else if (type == "thinking") {
      message.reasoning += block.required_string("thinking");
      block.ignore({"signature"});
    } else if (type == "redacted_thinking") {
      block.ignore({"data"});
      warn(context.warnings, "a thought that only its provider can read (redacted_thinking) was left out");
    } else if (is_of_hosted_tool(type)) {
      warn(context.warnings, "a call of one of the provider's own tools (" + type.substr(0, 60) + ") was left out");
      continue;
    } else if (type == "tool_use") {
      ToolCall call;
      call.id = block.required_string("id");
      call.name = block.required_string("name");
      const Json& input = block.require("input");
      if (!input.is_object()) block.fail("input", "must be an object");
      call.arguments = dump(input);
      message.tool_calls.push_back(std::move(call));
      block.ignore({"caller"});
    } else {
      fail_at(block.where("type"), "is '" + type.substr(0, 40) + "', which is not supported here");
    }
    block.ignore({"cache_control"});
    block.done();
  }
}

// One in the conversation. `clear_at`: the model is told it only until the next message of the user.
void parse_system_message(Fields& message, const Json& content, bool user_follows, Request& request,
                          const ApiContext& context) {
  const bool passing = message.string("clear_at").value_or("never") == "next_user_message";
  message.hints(context.warnings, {"output_config"});
  Request left_out;
  Request& into = (passing && user_follows) || content.empty() ? left_out : request;
  parse_plain_content(content, into, add_message(into, "system"), context, message.where("content"));
}

void parse_conversation(Fields& body, Request& request, const ApiContext& context) {
  if (const Json* system = body.find("system")) {
    parse_plain_content(*system, request, add_message(request, "system"), context, "system");
  }
  const Json& messages = expect_array(body.require("messages"), "messages");
  if (messages.empty()) fail_at("messages", "must not be empty");
  size_t last_user = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].is_object() && messages[i].value("role", Json()) == "user") last_user = i;
  }
  const Json nothing = Json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    Fields message(messages[i], at("messages", i));
    const std::string role = message.required_string("role");
    const bool settings = role == "system" && message.find("output_config");  // it may have these alone
    const Json& content = settings && !message.find("content") ? nothing : message.require("content");
    if (role == "user") {
      parse_user(content, request, context, message.where("content"));
    } else if (role == "assistant") {
      parse_assistant(content, request, context, message.where("content"));
    } else if (role == "system") {
      parse_system_message(message, content, i < last_user, request, context);
    } else {
      fail_at(message.where("role"), "must be user, assistant or system");
    }
    message.ignore({"id", "cache_control"});
    message.done();
  }
  parse_continuation(body, request);
}

// Tools, thinking, format.

// Whether the client allows at most one tool call.
bool parse_tool_choice(const Json* choice, const Json& tools, Request& request) {
  if (choice == nullptr) return false;
  Fields fields(*choice, "tool_choice");
  const std::string type = fields.required_string("type");
  if (type == "none") {
    request.tools.clear();
  } else if (type == "any" || type == "tool") {
    if (tools.empty()) fail_at("tool_choice", "asks for a call, but there are no tools");
    request.format.type = ResponseFormat::kToolCall;
    if (type == "tool") {
      request.format.tool_name = fields.required_string("name");
      check_tool_name(tools, request.format.tool_name, "tool_choice.name");
    }
  } else if (type != "auto") {
    fail_at("tool_choice.type", "must be auto, any, tool or none");
  }
  const bool one = fields.boolean("disable_parallel_tool_use").value_or(false);
  request.format.parallel_tools = !one;
  fields.done();
  return one;
}

void parse_thinking(Fields& body, Request& request, const ApiContext& context) {
  const Json* thinking = body.find("thinking");
  if (thinking == nullptr) return;
  Fields fields(*thinking, "thinking");
  const std::string type = fields.required_string("type");
  if (type != "enabled" && type != "disabled" && type != "adaptive" && type != "between_tools") {
    fail_at("thinking.type", "must be enabled, adaptive, between_tools or disabled");
  }
  request.chat.enable_thinking = type != "disabled";
  fields.ignore({"block_binding"});
  if (const auto budget = fields.integer("budget_tokens", 0, INT32_MAX)) {
    set_thinking_budget(request, *budget);
  }
  const std::string display = fields.string("display").value_or("summarized");
  if (display != "omitted") fields.hint(context.warnings, "display", {"summarized", "full"});
  fields.done();
}

// Thoughts are made, but their text is not sent.
bool thoughts_omitted(Fields& body) {
  const Json* thinking = body.find("thinking");
  return thinking != nullptr && thinking->is_object() && thinking->value("display", Json()) == "omitted";
}

// How long the model thinks, where it thinks at all: `thinking` says whether.
void parse_effort(Fields& config, Request& request, const ApiContext& context) {
  const auto effort = config.string("effort");
  if (!effort) return;
  thinking_wanted(*effort, config.where("effort"));
  if (request.chat.enable_thinking && request.thinking_budget < 0) set_effort(request, *effort);
  if (!request.chat.enable_thinking && *effort != "high") {
    warn(context.warnings, "output_config.effort has no effect without thinking");
  }
}

// What Anthropic's servers do between the turns of a conversation. The prompt template leaves the thoughts of earlier
// turns out anyway; other edits are for conversations that are kept on a server.
void parse_context_management(Fields& body, const ApiContext& context) {
  const Json* value = body.find("context_management");
  if (value == nullptr) return;
  Fields management(*value, "context_management");
  const Json* edits = management.find("edits");
  if (edits == nullptr) return;
  for (const Json& edit : expect_array(*edits, "context_management.edits")) {
    const Json type = edit.is_object() ? edit.value("type", Json()) : Json();
    if (type.is_string() && type.get<std::string>().starts_with("clear_thinking_")) continue;
    warn(context.warnings, "the parameter 'context_management' has no effect here but for clear_thinking");
  }
}

void read_account_fields(Fields& body, const ApiContext& context) {
  body.ignore({"metadata", "cache_control", "anthropic_version", "anthropic_beta", "diagnostics", "billing_policy",
               "user_profile_id", "workspace_id"});
  body.hint(context.warnings, "service_tier", {"auto", "standard_only"});
  body.hint(context.warnings, "speed", {"standard"});
  body.hints(context.warnings, {"inference_geo", "compaction", "fallbacks", "fallback_credit_token"});
  body.only("mcp_servers", {Json::array()});
  if (body.find("thread")) {  // the code tells Anthropic's library to send the conversation itself
    throw ApiError(400, "thread: this server keeps no threads; send the whole conversation in messages", "thread",
                   kThreadUnsupported);
  }
  parse_context_management(body, context);
}

void parse_output_config(Fields& body, Request& request, const ApiContext& context) {
  const auto read_format = [&](const Json& value, const std::string& path) {
    Fields format(value, path);
    format.only("type", {"json_schema"});
    // A call that is forced wins.
    if (request.format.type != ResponseFormat::kToolCall) request.format.type = ResponseFormat::kSchema;
    const Json& schema = format.require("schema");
    if (!schema.is_object()) format.fail("schema", "must be a JSON schema (an object)");
    request.format.schema = dump(schema);
    format.done();
  };
  if (const Json* format = body.find("output_format")) read_format(*format, "output_format");
  const Json* config = body.find("output_config");
  if (config == nullptr) return;
  Fields fields(*config, "output_config");
  if (const Json* format = fields.find("format")) read_format(*format, "output_config.format");
  parse_effort(fields, request, context);
  fields.hints(context.warnings, {"task_budget"});
  fields.done();
}

// Answers.

struct MessageStream {
  std::string id = make_id("msg_"), model;
  std::shared_ptr<Warnings> warnings;
  bool omit_thoughts = false;  // a block says that there was one
  enum { kNone, kThinking, kText } open = kNone;
  int index = -1;  // of the last block that was opened
  Finish finish = Finish::kStop;
  std::string stop;
  Usage usage;
};

Json usage_json(const Usage& usage) {
  return {{"input_tokens", usage.prompt_tokens - usage.cached_tokens},
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", usage.cached_tokens},
          {"output_tokens", usage.generated_tokens}};
}

const char* stop_reason(Finish finish, const std::string& stop) {
  if (!stop.empty()) return "stop_sequence";
  if (finish == Finish::kLength) return "max_tokens";
  return finish == Finish::kToolCalls ? "tool_use" : "end_turn";
}

Json call_input(const ToolCall& call) {
  return parse_exact_json(close_arguments(call.arguments),
                          128);  // from the model; call_parser.cc accepts a depth of up to 101
}

Json message_json(const MessageStream& stream) {
  return {{"id", stream.id},          {"type", "message"},
          {"role", "assistant"},      {"model", stream.model},
          {"content", Json::array()}, {"stop_reason", nullptr},
          {"stop_sequence", nullptr}, {"usage", usage_json(stream.usage)}};
}

std::string event_of(const std::string& type, Json members) {
  Json json = {{"type", type}};
  json.update(members);
  return sse(json, type);
}

std::string delta(const MessageStream& stream, Json what) {
  return event_of("content_block_delta", {{"index", stream.index}, {"delta", std::move(what)}});
}

std::string close_block(MessageStream& stream) {
  if (stream.open == MessageStream::kNone) return "";
  std::string out;
  // A signature proves that a thought is unchanged. This server does not check it, but clients expect the field.
  if (stream.open == MessageStream::kThinking) out = delta(stream, {{"type", "signature_delta"}, {"signature", ""}});
  stream.open = MessageStream::kNone;
  return out + event_of("content_block_stop", {{"index", stream.index}});
}

std::string open_block(MessageStream& stream, Json block) {
  ++stream.index;
  return event_of("content_block_start", {{"index", stream.index}, {"content_block", std::move(block)}});
}

std::string message_piece(MessageStream& stream, const Event& event) {
  std::string out;
  switch (event.type) {
    case Event::kText:
      if (stream.open != MessageStream::kText) {
        out = close_block(stream);
        out += open_block(stream, {{"type", "text"}, {"text", ""}});
      }
      stream.open = MessageStream::kText;
      return out + delta(stream, {{"type", "text_delta"}, {"text", event.text}});
    case Event::kThinking:
      if (stream.open != MessageStream::kThinking) {
        out = close_block(stream);
        out += open_block(stream, {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}});
      }
      stream.open = MessageStream::kThinking;
      if (stream.omit_thoughts) return out;
      return out + delta(stream, {{"type", "thinking_delta"}, {"thinking", event.text}});
    case Event::kToolCallBegin: {
      const ToolCall& call = event.tool_call;
      out = close_block(stream);
      return out + open_block(stream,
                              {{"type", "tool_use"}, {"id", call.id}, {"name", call.name}, {"input", Json::object()}});
    }
    case Event::kToolCallArguments:
      return delta(stream, {{"type", "input_json_delta"}, {"partial_json", event.text}});
    case Event::kToolCall:
      return event_of("content_block_stop", {{"index", stream.index}});
    default:
      stream.finish = event.finish;
      stream.stop = event.stop;
      stream.usage = event.usage;
      return close_block(stream);
  }
}

std::string message_end(const MessageStream& stream) {
  Json members = {{"delta",
                   {{"stop_reason", stop_reason(stream.finish, stream.stop)},
                    {"stop_sequence", stream.stop.empty() ? Json() : Json(stream.stop)}}},
                  {"usage", usage_json(stream.usage)}};
  add_warnings(members, stream.warnings);
  return event_of("message_delta", std::move(members)) + event_of("message_stop", Json::object());
}

std::string message_whole(MessageStream stream, const Choice& choice) {
  stream.usage = choice.usage;
  Json json = message_json(stream);
  Json& content = json["content"];
  if (!choice.thinking.empty()) {
    const std::string thought = stream.omit_thoughts ? "" : choice.thinking;
    content.push_back({{"type", "thinking"}, {"thinking", thought}, {"signature", ""}});
  }
  if (!choice.text.empty()) content.push_back({{"type", "text"}, {"text", choice.text}});
  for (const ToolCall& call : choice.tool_calls) {
    content.push_back({{"type", "tool_use"}, {"id", call.id}, {"name", call.name}, {"input", call_input(call)}});
  }
  json["stop_reason"] = stop_reason(choice.finish, choice.stop);
  if (!choice.stop.empty()) json["stop_sequence"] = choice.stop;
  add_warnings(json, stream.warnings);
  return dump(json);
}

ResponseSerializer message_serializer(const ApiContext& context, bool omit_thoughts) {
  auto stream = std::make_shared<MessageStream>();
  stream->model = context.models.front();
  stream->warnings = context.warnings;
  stream->omit_thoughts = omit_thoughts;
  ResponseSerializer serializer;
  serializer.whole = [stream](const std::vector<Choice>& choices) { return message_whole(*stream, choices.front()); };
  serializer.begin = [stream] { return event_of("message_start", {{"message", message_json(*stream)}}); };
  serializer.piece = [stream](int, const Event& event) { return message_piece(*stream, event); };
  serializer.end = [stream] { return message_end(*stream); };
  serializer.error = [](const ApiError& error) { return sse(anthropic_error(error), "error"); };
  serializer.ping = event_of("ping", Json::object());
  return serializer;
}

Json parse_prompt(Fields& body, Request& request, const ApiContext& context) {
  check_model(body, context);
  parse_conversation(body, request, context);
  ToolList list;
  if (const Json* value = body.find("tools")) list = parse_messages_tools(*value, context);
  request.tools = list.text();
  parse_thinking(body, request, context);
  return std::move(list.tools);
}

}  // namespace

Json anthropic_error(const ApiError& error) {
  const auto type = [&] {
    switch (error.status) {
      case 401:
        return "authentication_error";
      case 403:
        return "permission_error";
      case 404:
        return "not_found_error";
      case 413:
        return "request_too_large";
      case 429:
        return "rate_limit_error";
      case 503:
        return "overloaded_error";
      default:
        return error.status >= 500 ? "api_error" : "invalid_request_error";
    }
  };
  Json json = {{"type", "error"}, {"error", {{"type", type()}, {"message", error.what()}}}};
  if (error.code == kThreadUnsupported) {
    json["error"]["details"] = {{"error_code", error.code}, {"unsupported", Json::array({"thread"})}};
  }
  return json;
}

// The maximum of a prompt leaves one token for the answer.
ApiError anthropic_error_of(const ContextError& error) {
  const std::string tools =
      error.tool_tokens > 0 ? " (" + std::to_string(error.tool_tokens) + " of them describe the tools)" : "";
  return ApiError(400, "prompt is too long: " + std::to_string(error.tokens) + " tokens > " +
                           std::to_string(std::min(error.limit, error.tokens - 1)) + " maximum" + tools +
                           "; --max-seq-len sets the maximum");
}

Request parse_count_tokens(const Json& json, const ApiContext& context) {
  Fields body(json, "");
  Request request;
  const Json tools = parse_prompt(body, request, context);
  parse_tool_choice(body.find("tool_choice"), tools, request);
  body.ignore({"output_config", "output_format"});  // they do not change the prompt
  read_account_fields(body, context);
  body.done();
  return request;
}

CompletionRequest parse_messages(const Json& json, const ApiContext& context) {
  Fields body(json, "");
  Request request;
  const Json tools = parse_prompt(body, request, context);
  CompletionRequest completion;
  completion.one_tool_call = parse_tool_choice(body.find("tool_choice"), tools, request);
  check_uncalled_tools(tools, request);
  parse_output_config(body, request, context);
  const auto most = body.integer("max_tokens", 0, INT32_MAX);
  if (!most) body.fail("max_tokens", "is missing");
  request.max_new_tokens = static_cast<int>(*most);
  request.score_only = *most == 0;  // computes the prompt for later requests that begin with it
  RequestSampling& s = request.sampling;
  if (const auto v = body.number("temperature", 0, 1)) s.temperature = static_cast<float>(*v);
  if (const auto v = body.number("top_p", 0, 1)) s.top_p = std::max(static_cast<float>(*v), kTopPLeast);
  if (const auto v = body.integer("top_k", 0, INT32_MAX)) s.top_k = static_cast<int>(*v);
  request.stop = body.strings("stop_sequences");
  std::erase(request.stop, "");
  completion.stream = body.boolean("stream").value_or(false);
  read_account_fields(body, context);
  const bool omitted = thoughts_omitted(body);
  body.done();
  completion.requests.push_back(std::move(request));
  completion.serializer = message_serializer(context, omitted);
  return completion;
}

}  // namespace gemma4
