// /v1/chat/completions.
#include <memory>

#include "base/exact_json.h"
#include "server/api/build_request.h"
#include "server/api/openai.h"

namespace gemma4 {
namespace {

std::string at(const std::string& path, size_t index) { return path + "[" + std::to_string(index) + "]"; }

// Messages.

void parse_image_part(Fields& part, Request& request, Message& message, const ApiContext& context) {
  const Json& value = part.require("image_url");
  const std::string path = part.where("image_url");
  if (value.is_string())
    return add_image(request, message, image_of_url(value.get_ref<const std::string&>(), context, path));
  Fields image(value, path);
  const Json& url = image.require("url");
  add_image(request, message, image_of_url(expect_string(url, image.where("url")), context, image.where("url")));
  if (const auto detail = image.string("detail")) set_image_detail(request, *detail, context, image.where("detail"));
  image.done();
}

void parse_part(const Json& value, Request& request, Message& message, const ApiContext& context,
                const std::string& path) {
  Fields part(value, path);
  const std::string type = part.required_string("type");
  if (type == "text") {
    add_text(message, part.required_string("text"));
  } else if (type == "refusal") {
    add_text(message, part.required_string("refusal"));
  } else if (type == "image_url") {
    parse_image_part(part, request, message, context);
  } else {
    fail_at(part.where("type"), "is '" + type.substr(0, 40) + "'; only text and image_url are supported");
  }
  part.ignore({"cache_control"});
  part.done();
}

void parse_content(const Json* content, Request& request, Message& message, const ApiContext& context,
                   const std::string& path) {
  if (content == nullptr) return;
  if (content->is_string()) return add_text(message, content->get<std::string>());
  if (!content->is_array()) fail_at(path, "must be a string or an array of parts");
  for (size_t i = 0; i < content->size(); ++i) parse_part((*content)[i], request, message, context, at(path, i));
}

void parse_tool_calls(const Json& calls, Message& message, const std::string& path) {
  expect_array(calls, path);
  for (size_t i = 0; i < calls.size(); ++i) {
    Fields call(calls[i], at(path, i));
    call.only("type", {"function"});
    call.ignore({"index"});
    Fields function(call.require("function"), call.where("function"));
    ToolCall parsed;
    parsed.id = call.string("id").value_or("");
    parsed.name = function.required_string("name");
    parsed.arguments = function.string("arguments").value_or("");
    if (!parsed.arguments.empty() && !is_exact_json(parsed.arguments, kCallDepthMax)) {
      fail_at(function.where("arguments"), "must be a JSON object as a string");
    }
    message.tool_calls.push_back(std::move(parsed));
    function.done();
    call.done();
  }
}

void parse_message(const Json& value, Request& request, const ApiContext& context, const std::string& path) {
  Fields fields(value, path);
  const std::string role = fields.required_string("role");
  if (role != "system" && role != "developer" && role != "user" && role != "assistant" && role != "tool") {
    fail_at(fields.where("role"), "must be one of system, developer, user, assistant, tool");
  }
  Message& message = add_message(request, role);
  const Json* content = fields.find("content");
  parse_content(content, request, message, context, fields.where("content"));
  if (role == "assistant") {
    if (const Json* calls = fields.find("tool_calls")) parse_tool_calls(*calls, message, fields.where("tool_calls"));
    if (const auto text = fields.string("reasoning")) message.reasoning = *text;
    if (const auto text = fields.string("reasoning_content")) message.reasoning = *text;
    if (const auto text = fields.string("refusal")) add_text(message, *text);
    fields.ignore({"annotations"});
    fields.only("audio", {});
    fields.only("function_call", {});
  } else if (content == nullptr) {
    fields.fail("content", "is missing");
  }
  if (role == "tool") message.tool_call_id = fields.required_string("tool_call_id");
  if (const auto name = fields.string("name")) message.name = *name;
  fields.done();
}

// Tools and formats.

Json parse_tools(const Json& value, const std::string& path) {
  Json tools = Json::array();
  expect_array(value, path);
  for (size_t i = 0; i < value.size(); ++i) {
    Fields tool(value[i], at(path, i));
    tool.only("type", {"function"});
    Fields function(tool.require("function"), tool.where("function"));
    const std::string name = function.required_string("name");
    tools.push_back(make_tool(name, function.find("description"), function.find("parameters"), tool.where("function")));
    if (function.boolean("strict").value_or(false)) tools.back()["function"]["strict"] = true;
    function.done();
    tool.ignore({"cache_control"});
    tool.done();
  }
  return tools;
}

void parse_tool_choice(const Json* choice, const Json& tools, Request& request) {
  ResponseFormat& format = request.format;
  if (choice == nullptr || *choice == "auto") return;
  if (*choice == "none") {
    request.tools.clear();
  } else if (*choice == "required") {
    if (tools.empty()) fail_at("tool_choice", "is 'required', but there are no tools");
    format.type = ResponseFormat::kToolCall;
  } else if (choice->is_object()) {
    Fields fields(*choice, "tool_choice");
    fields.only("type", {"function"});
    Fields function(fields.require("function"), "tool_choice.function");
    format.type = ResponseFormat::kToolCall;
    format.tool_name = function.required_string("name");
    check_tool_name(tools, format.tool_name, "tool_choice.function.name");
    function.done();
    fields.done();
  } else {
    fail_at("tool_choice", "must be none, auto, required or {\"type\": \"function\", \"function\": {\"name\": ...}}");
  }
}

void parse_format(const Json* value, Request& request) {
  if (value == nullptr) return;
  Fields fields(*value, "response_format");
  const std::string type = fields.required_string("type");
  ResponseFormat format;
  if (type == "json_object") {
    format.type = ResponseFormat::kJson;
  } else if (type == "json_schema") {
    Fields schema(fields.require("json_schema"), "response_format.json_schema");
    format.type = ResponseFormat::kSchema;
    format.schema = schema_text(schema.require("schema"), schema.where("schema"));
    schema.ignore({"name", "description"});
    schema.only("strict", {true, false});
    schema.done();
  } else if (type != "text") {
    fail_at("response_format.type", "must be text, json_object or json_schema");
  }
  fields.done();
  // A call that is forced wins, as at OpenAI.
  if (format.type == ResponseFormat::kFree || request.format.type == ResponseFormat::kToolCall) return;
  request.format = std::move(format);
}

void parse_thinking(Fields& body, Request& request) {
  if (const auto effort = body.string("reasoning_effort")) {
    request.chat.enable_thinking = thinking_wanted(*effort, "reasoning_effort");
    set_effort(request, *effort);
  }
  if (const Json* kwargs = body.find("chat_template_kwargs")) {
    Fields fields(*kwargs, "chat_template_kwargs");
    if (const auto on = fields.boolean("enable_thinking")) request.chat.enable_thinking = *on;
    if (const auto on = fields.boolean("preserve_thinking")) request.chat.preserve_thinking = *on;
    fields.done();
  }
  if (const auto budget = body.integer("thinking_token_budget", -1, INT32_MAX)) {
    request.thinking_budget = static_cast<int>(*budget);
    request.thinking_share = 1;
    if (*budget == 0) request.chat.enable_thinking = false;
  }
}

// Answers.

// The members that every object of a stream repeats, and its state.
struct ChatStream {
  std::string id = make_id("chatcmpl-"), model;
  int64_t created = unix_time();
  int choices = 1;
  bool usage = false, logprobs = false;
  std::shared_ptr<Warnings> warnings;
  std::vector<Choice> done;

  Json object(const char* type) const { return {{"id", id}, {"object", type}, {"created", created}, {"model", model}}; }

  std::string chunk(int index, Json delta, const Json& finish = nullptr, Json token_logprobs = nullptr) const {
    Json json = object("chat.completion.chunk");
    json["choices"] = Json::array();
    json["choices"].push_back({{"index", index},
                               {"delta", std::move(delta)},
                               {"logprobs", std::move(token_logprobs)},
                               {"finish_reason", finish}});
    if (usage) json["usage"] = nullptr;
    // The last chunk, unless one with the usage follows.
    if (!usage && static_cast<int>(done.size()) == choices) add_warnings(json, warnings);
    return sse(json);
  }
};

Json chat_logprobs(const std::vector<TokenLogprobs>& tokens) {
  Json content = Json::array();
  for (const TokenLogprobs& token : tokens) {
    Json entry = logprob_entry(token.token);
    entry["top_logprobs"] = Json::array();
    for (const TokenLogprob& other : token.top) entry["top_logprobs"].push_back(logprob_entry(other));
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json chat_usage(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.generated_tokens},
          {"total_tokens", usage.prompt_tokens + usage.generated_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}, {"image_tokens", usage.image_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", usage.thinking_tokens}}}};
}

Json tool_call_json(const ToolCall& call) {
  return {{"id", call.id},
          {"type", "function"},
          {"function", {{"name", call.name}, {"arguments", call.arguments.empty() ? "{}" : call.arguments}}}};
}

Json chat_choice(const Choice& choice, int index, bool logprobs) {
  Json message = {{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}};
  if (choice.text.empty() && !choice.tool_calls.empty()) message["content"] = nullptr;
  if (!choice.thinking.empty()) message["reasoning_content"] = choice.thinking;
  for (const ToolCall& call : choice.tool_calls) message["tool_calls"].push_back(tool_call_json(call));
  return {{"index", index},
          {"message", std::move(message)},
          {"logprobs", logprobs ? chat_logprobs(choice.logprobs) : Json()},
          {"finish_reason", finish_name(choice.finish)}};
}

std::string chat_piece(ChatStream& stream, int index, const Event& event) {
  Json logprobs;
  if (stream.logprobs && event.type == Event::kText) logprobs = chat_logprobs(event.logprobs);
  switch (event.type) {
    case Event::kText:
      return stream.chunk(index, {{"content", event.text}}, nullptr, std::move(logprobs));
    case Event::kThinking:
      return stream.chunk(index, {{"reasoning_content", event.text}});
    case Event::kToolCallBegin: {
      Json call = {{"index", event.tool_index}};
      call.update(tool_call_json(event.tool_call));
      call["function"]["arguments"] = "";
      return stream.chunk(index, {{"tool_calls", Json::array({std::move(call)})}});
    }
    case Event::kToolCallArguments: {
      Json call = {{"index", event.tool_index}, {"function", {{"arguments", event.text}}}};
      return stream.chunk(index, {{"tool_calls", Json::array({std::move(call)})}});
    }
    case Event::kToolCall:
      return "";  // it was streamed
    default:
      return stream.chunk(index, Json::object(), finish_name(event.finish));
  }
}

std::string chat_end(const ChatStream& stream) {
  std::string out;
  if (stream.usage) {
    Json json = stream.object("chat.completion.chunk");
    json["choices"] = Json::array();
    json["usage"] = chat_usage(total_usage(stream.done, static_cast<int>(stream.done.size())));
    if (!stream.done.empty()) json["timings"] = timings(stream.done.front().usage);
    add_warnings(json, stream.warnings);
    out = sse(json);
  }
  return out + "data: [DONE]\n\n";
}

ResponseSerializer chat_serializer(ChatStream made) {
  auto stream = std::make_shared<ChatStream>(std::move(made));
  ResponseSerializer serializer;
  serializer.whole = [stream](const std::vector<Choice>& choices) {
    Json json = stream->object("chat.completion");
    json["choices"] = Json::array();
    for (size_t i = 0; i < choices.size(); ++i) {
      json["choices"].push_back(chat_choice(choices[i], static_cast<int>(i), stream->logprobs));
    }
    json["usage"] = chat_usage(total_usage(choices, static_cast<int>(choices.size())));
    json["timings"] = timings(choices.front().usage);
    add_warnings(json, stream->warnings);
    return dump(json);
  };
  serializer.begin = [stream] {
    std::string out;
    for (int i = 0; i < stream->choices; ++i) out += stream->chunk(i, {{"role", "assistant"}, {"content", ""}});
    return out;
  };
  serializer.piece = [stream](int index, const Event& event) {
    if (event.type == Event::kDone) stream->done.emplace_back().usage = event.usage;
    return chat_piece(*stream, index, event);
  };
  serializer.end = [stream] { return chat_end(*stream); };
  serializer.error = [](const ApiError& error) { return sse(openai_error(error)); };
  return serializer;
}

// Members without effect here, whatever their values are: who sends the request, and how a large operator routes it.
void ignore_account_fields(Fields& body, const ApiContext& context) {
  body.ignore({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"});
  body.hint(context.warnings, "service_tier", {"auto", "default"});
  body.hint(context.warnings, "verbosity", {"medium"});
  body.only("store", {false});
  body.only("modalities", {Json::array({"text"})});
}

}  // namespace

Request parse_chat_prompt(Fields& body, const ApiContext& context) {
  Request request;
  const Json& messages = expect_array(body.require("messages"), "messages");
  if (messages.empty()) fail_at("messages", "must not be empty");
  for (size_t i = 0; i < messages.size(); ++i) parse_message(messages[i], request, context, at("messages", i));
  parse_continuation(body, request);
  if (const Json* value = body.find("tools")) {
    const Json tools = parse_tools(*value, "tools");
    if (!tools.empty()) request.tools = dump(tools);
  }
  parse_thinking(body, request);
  return request;
}

CompletionRequest parse_chat(const Json& json, const ApiContext& context) {
  Fields body(json, "");
  check_model(body, context);
  Request request = parse_chat_prompt(body, context);
  const Json tools = request.tools.empty() ? Json::array() : Json::parse(request.tools);
  parse_tool_choice(body.find("tool_choice"), tools, request);
  parse_format(body.find("response_format"), request);
  parse_sampling(body, request);
  const auto most = [&](const char* name) { return body.integer(name, 1, INT32_MAX); };
  const auto newer = most("max_completion_tokens"), older = most("max_tokens");
  request.max_new_tokens = static_cast<int>(newer.value_or(older.value_or(0)));
  const auto top = body.integer("top_logprobs", 0, kLogprobsMax);
  ChatStream stream;
  stream.logprobs = body.boolean("logprobs").value_or(false);
  if (top && !stream.logprobs) fail_at("top_logprobs", "needs logprobs to be true");
  if (stream.logprobs) request.logprobs = static_cast<int>(top.value_or(0));
  CompletionRequest completion;
  completion.stream = body.boolean("stream").value_or(false);
  if (const Json* options = body.find("stream_options")) {
    if (!completion.stream) fail_at("stream_options", "needs stream to be true");
    Fields fields(*options, "stream_options");
    stream.usage = fields.boolean("include_usage").value_or(false);
    fields.only("include_obfuscation", {false});
    fields.done();
  }
  const bool parallel = body.boolean("parallel_tool_calls").value_or(true);
  completion.one_tool_call = !parallel;
  request.format.parallel_tools = parallel;
  stream.choices = static_cast<int>(body.integer("n", 1, kChoicesMax).value_or(1));
  ignore_account_fields(body, context);
  body.done();
  stream.model = context.models.front();
  stream.warnings = context.warnings;
  request.n = stream.choices;
  completion.requests.push_back(std::move(request));
  completion.serializer = chat_serializer(std::move(stream));
  return completion;
}

}  // namespace gemma4
