#include "server/api/anthropic.h"

#include <memory>

#include "base/exact_json.h"
#include "server/api/build_request.h"
#include "text/chat/call_parser.h"

namespace gemma4 {
namespace {

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

// A block of text or an image, which may stand in user messages, tool results and system prompts.
void parse_plain_block(Fields& block, const std::string& type, Request& request, Message& message,
                       const ApiContext& context) {
  if (type == "text") {
    add_text(message, block.required_string("text"));
    block.ignore({"citations"});
  } else if (type == "image") {
    parse_image(block, request, message, context);
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

void parse_assistant(const Json& content, Request& request, const std::string& path) {
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

void parse_conversation(Fields& body, Request& request, const ApiContext& context) {
  if (const Json* system = body.find("system")) {
    parse_plain_content(*system, request, add_message(request, "system"), context, "system");
  }
  const Json& messages = expect_array(body.require("messages"), "messages");
  if (messages.empty()) fail_at("messages", "must not be empty");
  for (size_t i = 0; i < messages.size(); ++i) {
    Fields message(messages[i], at("messages", i));
    const std::string role = message.required_string("role");
    const Json& content = message.require("content");
    if (role == "user") {
      parse_user(content, request, context, message.where("content"));
    } else if (role == "assistant") {
      parse_assistant(content, request, message.where("content"));
    } else {
      fail_at(message.where("role"), "must be user or assistant");
    }
    message.done();
  }
  parse_continuation(body, request);
}

// Tools, thinking, format.

Json parse_tools(const Json& value) {
  Json tools = Json::array();
  expect_array(value, "tools");
  for (size_t i = 0; i < value.size(); ++i) {
    Fields tool(value[i], at("tools", i));
    tool.only("type", {"custom"});
    const std::string name = tool.required_string("name");
    tools.push_back(make_tool(name, tool.find("description"), &tool.require("input_schema"), at("tools", i)));
    if (tool.boolean("strict").value_or(false)) tools.back()["function"]["strict"] = true;
    tool.ignore({"cache_control"});
    tool.done();
  }
  return tools;
}

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

void parse_thinking(Fields& body, Request& request) {
  const Json* thinking = body.find("thinking");
  if (thinking == nullptr) return;
  Fields fields(*thinking, "thinking");
  const std::string type = fields.required_string("type");
  if (type != "enabled" && type != "disabled" && type != "adaptive") {
    fail_at("thinking.type", "must be enabled, adaptive or disabled");
  }
  request.chat.enable_thinking = type != "disabled";
  if (const auto budget = fields.integer("budget_tokens", 0, INT32_MAX)) {
    request.thinking_budget = static_cast<int>(*budget);
  }
  fields.only("display", {"summarized"});
  fields.done();
}

void parse_output_config(Fields& body, Request& request) {
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
  fields.done();
}

// Answers.

struct MessageStream {
  std::string id = make_id("msg_"), model;
  std::shared_ptr<Warnings> warnings;
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
    content.push_back({{"type", "thinking"}, {"thinking", choice.thinking}, {"signature", ""}});
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

ResponseSerializer message_serializer(const ApiContext& context) {
  auto stream = std::make_shared<MessageStream>();
  stream->model = context.models.front();
  stream->warnings = context.warnings;
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
  Json tools = Json::array();
  if (const Json* value = body.find("tools")) tools = parse_tools(*value);
  if (!tools.empty()) request.tools = dump(tools);
  parse_thinking(body, request);
  return tools;
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
  return {{"type", "error"}, {"error", {{"type", type()}, {"message", error.what()}}}};
}

Request parse_count_tokens(const Json& json, const ApiContext& context) {
  Fields body(json, "");
  Request request;
  const Json tools = parse_prompt(body, request, context);
  parse_tool_choice(body.find("tool_choice"), tools, request);
  body.ignore({"output_config", "output_format"});  // they do not change the prompt
  body.done();
  return request;
}

CompletionRequest parse_messages(const Json& json, const ApiContext& context) {
  Fields body(json, "");
  Request request;
  const Json tools = parse_prompt(body, request, context);
  CompletionRequest completion;
  completion.one_tool_call = parse_tool_choice(body.find("tool_choice"), tools, request);
  parse_output_config(body, request);
  const auto most = body.integer("max_tokens", 1, INT32_MAX);
  if (!most) body.fail("max_tokens", "is missing");
  request.max_new_tokens = static_cast<int>(*most);
  RequestSampling& s = request.sampling;
  if (const auto v = body.number("temperature", 0, 1)) s.temperature = static_cast<float>(*v);
  if (const auto v = body.number("top_p", 0, 1)) s.top_p = static_cast<float>(*v);
  if (const auto v = body.integer("top_k", 0, INT32_MAX)) s.top_k = static_cast<int>(*v);
  request.stop = body.strings("stop_sequences");
  completion.stream = body.boolean("stream").value_or(false);
  body.ignore({"metadata"});
  body.hint(context.warnings, "service_tier", {"auto", "standard_only"});
  body.done();
  completion.requests.push_back(std::move(request));
  completion.serializer = message_serializer(context);
  return completion;
}

}  // namespace gemma4
