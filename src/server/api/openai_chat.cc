// /v1/chat/completions.
#include <memory>

#include "server/api/build_request.h"
#include "server/api/call_arguments.h"
#include "server/api/guided.h"
#include "server/api/openai.h"
#include "server/api/tool_list.h"

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

void parse_file_part(Fields& part, Message& message) {
  Fields file(part.require("file"), part.where("file"));
  const std::string name = file.string("filename").value_or("");
  add_text(message, named_text(name, text_of_url(file.required_string("file_data"), file.where("file_data"))));
  file.ignore({"format"});
  file.done();
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
  } else if (type == "file") {
    parse_file_part(part, message);
  } else if (type == "thinking" && message.role == "assistant") {
    message.reasoning += part.required_string("thinking");
    part.ignore({"signature"});
  } else {
    fail_at(part.where("type"),
            "is '" + type.substr(0, 40) + "'; only text, pictures (image_url) and files that are texts are read");
  }
  part.ignore({"cache_control", "id"});
  part.done();
}

void parse_content(const Json* content, Request& request, Message& message, const ApiContext& context,
                   const std::string& path) {
  if (content == nullptr) return;
  if (content->is_string()) return add_text(message, content->get<std::string>());
  if (!content->is_array()) fail_at(path, "must be a string or an array of parts");
  for (size_t i = 0; i < content->size(); ++i) parse_part((*content)[i], request, message, context, at(path, i));
}

void parse_tool_calls(const Json& calls, Message& message, const ApiContext& context, const std::string& path) {
  expect_array(calls, path);
  for (size_t i = 0; i < calls.size(); ++i) {
    Fields call(calls[i], at(path, i));
    call.ignore({"index"});
    if (const Json* value = call.find("custom")) {
      call.only("type", {"custom"});
      Fields custom(*value, call.where("custom"));
      message.tool_calls.push_back({call.string("id").value_or(""), custom.required_string("name"),
                                    custom_arguments(custom.string("input").value_or(""))});
      custom.done();
      call.done();
      continue;
    }
    call.only("type", {"function"});
    Fields function(call.require("function"), call.where("function"));
    ToolCall parsed;
    parsed.id = call.string("id").value_or("");
    parsed.name = function.required_string("name");
    parsed.arguments = call_arguments(function.find("arguments"), context, function.where("arguments"));
    message.tool_calls.push_back(std::move(parsed));
    function.ignore({"provider_specific_fields"});
    function.done();
    call.ignore({"provider_specific_fields", "cache_control", "extra_content"});
    call.done();
  }
}

// LiteLLM's `thinking_blocks` and OpenRouter's `reasoning_details`: the thoughts in the form of another API. Both also
// stand beside a plain text of the same thoughts.
void parse_thought_blocks(const Json& blocks, const char* member, Message& message, const std::string& path) {
  std::string thoughts;
  for (const Json& block : expect_array(blocks, path)) {
    const auto text = block.is_object() ? block.find(member) : block.end();
    if (text != block.end() && text->is_string()) thoughts += text->get<std::string>();
  }
  if (message.reasoning.empty()) message.reasoning = thoughts;
}

void parse_assistant(Fields& fields, Message& message, const ApiContext& context) {
  if (const Json* calls = fields.find("tool_calls")) {
    parse_tool_calls(*calls, message, context, fields.where("tool_calls"));
  }
  if (const auto text = fields.string("reasoning")) message.reasoning = *text;
  if (const auto text = fields.string("reasoning_content")) message.reasoning = *text;
  if (const Json* blocks = fields.find("thinking_blocks")) {
    parse_thought_blocks(*blocks, "thinking", message, fields.where("thinking_blocks"));
  }
  if (const Json* blocks = fields.find("reasoning_details")) {
    parse_thought_blocks(*blocks, "text", message, fields.where("reasoning_details"));
  }
  if (const auto text = fields.string("refusal")) add_text(message, *text);
  if (const Json* value = fields.find("function_call")) {  // the older form of tool_calls
    Fields call(*value, fields.where("function_call"));
    message.tool_calls.push_back({"", call.required_string("name"),
                                  call_arguments(call.find("arguments"), context, call.where("arguments"))});
    call.done();
  }
  fields.ignore({"annotations", "phase", "prefix"});
  fields.only("audio", {});
}

void parse_message(const Json& value, Request& request, const ApiContext& context, const std::string& path) {
  Fields fields(value, path);
  const std::string role = fields.required_string("role");
  const bool function = role == "function";  // the older form of tool
  if (role != "system" && role != "developer" && role != "user" && role != "assistant" && role != "tool" && !function) {
    fail_at(fields.where("role"), "must be one of system, developer, user, assistant, tool");
  }
  Message& message = add_message(request, function ? "tool" : role);
  const Json* content = fields.find("content");
  parse_content(content, request, message, context, fields.where("content"));
  if (role == "assistant") {
    parse_assistant(fields, message, context);
  } else if (content == nullptr && message.role != "tool") {
    fields.fail("content", "is missing");
  }
  if (message.role == "tool") {
    if (!fields.find("name")) fields.require("tool_call_id");  // it may be empty, as that of a call may
    message.tool_call_id = fields.string("tool_call_id").value_or("");
  }
  fields.ignore({"id", "cache_control", "provider_specific_fields"});
  if (const auto name = fields.string("name")) message.name = *name;
  fields.done();
}

// Tools and formats.

void parse_tool_choice_object(const Json& choice, ToolList& tools, Request& request) {
  Fields fields(choice, "tool_choice");
  const std::string type = fields.string("type").value_or("function");
  if (type == "allowed_tools") {
    Fields allowed(fields.require("allowed_tools"), "tool_choice.allowed_tools");
    parse_allowed_tools(allowed, tools, request, [](Fields& tool, const std::string& kind) {
      return Fields(tool.require(kind.c_str()), tool.where(kind.c_str())).required_string("name");
    });
    allowed.done();
  } else {
    fields.only("type", {"function", "custom"});
    Fields named(fields.require(type.c_str()), fields.where(type.c_str()));
    request.format.type = ResponseFormat::kToolCall;
    request.format.tool_name = named.required_string("name");
    check_tool_name(tools.tools, request.format.tool_name, named.where("name"));
    named.done();
  }
  fields.done();
}

void parse_tool_choice(const Json* choice, ToolList& tools, Request& request) {
  ResponseFormat& format = request.format;
  if (choice == nullptr || *choice == "auto") return;
  if (*choice == "none") {
    request.tools.clear();
  } else if (*choice == "required") {
    if (tools.tools.empty()) fail_at("tool_choice", "is 'required', but there are no tools");
    format.type = ResponseFormat::kToolCall;
  } else if (choice->is_object()) {
    parse_tool_choice_object(*choice, tools, request);
  } else {
    fail_at("tool_choice", "must be none, auto, required or {\"type\": \"function\", \"function\": {\"name\": ...}}");
  }
}

// The older `function_call`: none, auto or {"name": ..}.
void parse_function_call(Fields& body, const ToolList& tools, Request& request) {
  const Json* choice = body.find("function_call");
  if (choice == nullptr || *choice == "auto") return;
  if (*choice == "none") return request.tools.clear();
  Fields fields(*choice, "function_call");
  request.format.type = ResponseFormat::kToolCall;
  request.format.tool_name = fields.required_string("name");
  check_tool_name(tools.tools, request.format.tool_name, "function_call.name");
  fields.done();
}

void parse_format(const Json* value, Request& request) {
  if (value == nullptr) return;
  Fields fields(*value, "response_format");
  const std::string type = fields.required_string("type");
  ResponseFormat format;
  const Json* beside = fields.find("schema");  // as llama.cpp has it
  if (beside != nullptr && (type == "json_object" || type == "json_schema")) {
    format.type = ResponseFormat::kSchema;
    format.schema = schema_text(*beside, fields.where("schema"));
  } else if (type == "json_object") {
    format.type = ResponseFormat::kJson;
    if (const Json* schema = fields.find("schema")) {  // as llama.cpp and Together have it
      format.type = ResponseFormat::kSchema;
      format.schema = schema_text(*schema, fields.where("schema"));
    }
  } else if (type == "json_schema") {
    Fields schema(fields.require("json_schema"), "response_format.json_schema");
    format.type = ResponseFormat::kSchema;
    format.schema = schema_text(schema.require("schema"), schema.where("schema"));
    schema.ignore({"name", "description"});
    format.strict = schema.boolean("strict").value_or(false);
    schema.done();
  } else if (type != "text") {
    fail_at("response_format.type", "must be text, json_object or json_schema");
  }
  fields.done();
  // A call that is forced wins, as at OpenAI.
  if (format.type == ResponseFormat::kFree || request.format.type == ResponseFormat::kToolCall) return;
  request.format = std::move(format);
}

// Efforts first: a budget in tokens says it more exactly, wherever it stands.
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
  if (const Json* value = body.find("think")) parse_think(*value, request);  // Ollama's
  if (const Json* value = body.find("reasoning")) {                          // OpenRouter's
    Fields reasoning(*value, "reasoning");
    parse_reasoning_amount(reasoning, request);
    reasoning.boolean("exclude");  // parse_chat
    reasoning.done();
  }
  if (const Json* value = body.find("thinking")) {  // Anthropic's, as some clients send it to every API
    Fields thinking(*value, "thinking");
    const std::string type = thinking.required_string("type");
    if (type != "enabled" && type != "adaptive" && type != "disabled") {
      fail_at("thinking.type", "must be enabled, adaptive or disabled");
    }
    request.chat.enable_thinking = type != "disabled";
    if (const auto budget = thinking.integer("budget_tokens", 0, INT32_MAX)) set_thinking_budget(request, *budget);
    thinking.done();
  }
  if (const auto budget = body.integer("thinking_token_budget", -1, INT32_MAX)) {
    set_thinking_budget(request, *budget);
    if (*budget == 0) request.chat.enable_thinking = false;
  }
  if (const auto budget = body.integer("thinking_budget", 0, INT32_MAX)) {  // Qwen's
    set_thinking_budget(request, *budget);
  }
  if (const auto on = body.boolean("enable_thinking")) request.chat.enable_thinking = *on;
}

// Answers.

// The members that every object of a stream repeats, and its state.
struct ChatStream {
  std::string id = make_id("chatcmpl-"), model;
  int64_t created = unix_time();
  int choices = 1;
  bool usage = false, logprobs = false, hide_thoughts = false;
  ToolList tools;                   // of the request, for the client's names of them
  std::map<int, bool> custom_call;  // by choice: its last call is of a custom tool
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
  return {{"content", logprob_entries(tokens)}, {"refusal", nullptr}};
}

Json chat_usage(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.generated_tokens},
          {"total_tokens", usage.prompt_tokens + usage.generated_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}, {"image_tokens", usage.image_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", usage.thinking_tokens}}}};
}

Json tool_call_json(const ToolCall& call, const ToolList& tools) {
  if (const ToolList::Origin* origin = tools.origin(call.name); origin != nullptr && origin->custom) {
    return {{"id", call.id},
            {"type", "custom"},
            {"custom", {{"name", origin->name}, {"input", custom_input(call.arguments)}}}};
  }
  return {{"id", call.id},
          {"type", "function"},
          {"function", {{"name", call.name}, {"arguments", call.arguments.empty() ? "{}" : call.arguments}}}};
}

// With the older `functions` an answer has one call.
void add_calls(Json& message, const std::vector<ToolCall>& calls, const ToolList& tools) {
  for (const ToolCall& call : calls) {
    Json json = tool_call_json(call, tools);
    if (tools.functions) {
      message["function_call"] = json["function"];
    } else {
      message["tool_calls"].push_back(std::move(json));
    }
  }
}

const char* chat_finish(Finish finish, const ToolList& tools) {
  return finish == Finish::kToolCalls && tools.functions ? "function_call" : finish_name(finish);
}

Json chat_choice(const Choice& choice, int index, const ChatStream& stream) {
  Json message = {{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}};
  if (choice.text.empty() && !choice.tool_calls.empty()) message["content"] = nullptr;
  if (!choice.thinking.empty() && !stream.hide_thoughts) message["reasoning_content"] = choice.thinking;
  add_calls(message, choice.tool_calls, stream.tools);
  return {{"index", index},
          {"message", std::move(message)},
          {"logprobs", stream.logprobs ? chat_logprobs(choice.logprobs) : Json()},
          {"finish_reason", chat_finish(choice.finish, stream.tools)}};
}

// A call comes as its name, its arguments in pieces, and its end. A custom tool's text comes at the end, as a whole.
std::string call_piece(ChatStream& stream, int index, const Event& event) {
  const bool end = event.type == Event::kToolCall;
  if (event.type == Event::kToolCallArguments) {
    const Json arguments = {{"arguments", event.text}};
    if (stream.custom_call[index]) return "";
    if (stream.tools.functions) return stream.chunk(index, {{"function_call", arguments}});
    const Json more = {{"index", event.tool_index}, {"function", arguments}};
    return stream.chunk(index, {{"tool_calls", Json::array({more})}});
  }
  if (end && !stream.custom_call[index]) return "";  // it was streamed
  Json call = {{"index", event.tool_index}};
  call.update(tool_call_json(event.tool_call, stream.tools));
  const bool custom = stream.custom_call[index] = call["type"] == "custom";
  if (end) {
    const Json input = {{"index", event.tool_index}, {"custom", {{"input", call["custom"]["input"]}}}};
    return stream.chunk(index, {{"tool_calls", Json::array({input})}});
  }
  if (!custom) call["function"]["arguments"] = "";
  if (stream.tools.functions) return stream.chunk(index, {{"function_call", call["function"]}});
  return stream.chunk(index, {{"tool_calls", Json::array({std::move(call)})}});
}

std::string chat_piece(ChatStream& stream, int index, const Event& event) {
  Json logprobs;
  if (stream.logprobs && event.type == Event::kText) logprobs = chat_logprobs(event.logprobs);
  switch (event.type) {
    case Event::kText:
      return stream.chunk(index, {{"content", event.text}}, nullptr, std::move(logprobs));
    case Event::kThinking:
      return stream.hide_thoughts ? "" : stream.chunk(index, {{"reasoning_content", event.text}});
    case Event::kToolCallBegin:
    case Event::kToolCallArguments:
    case Event::kToolCall:
      return call_piece(stream, index, event);
    default:
      return stream.chunk(index, Json::object(), chat_finish(event.finish, stream.tools));
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
      json["choices"].push_back(chat_choice(choices[i], static_cast<int>(i), *stream));
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

// Members that say who asks, and those by which providers tune what they alone can do.
void read_provider_fields(Fields& body, const ApiContext& context) {
  body.ignore({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
               "prompt_cache_options", "session_id", "request_id", "client_metadata"});
  body.hint(context.warnings, "service_tier", {"auto", "default"});
  body.hint(context.warnings, "verbosity", {"medium"});
  body.hint(context.warnings, "store", {false});
  body.hints(context.warnings, {"prediction", "web_search_options", "moderation", "provider", "route", "usage",
                                "include", "context_management"});
  body.hint(context.warnings, "transforms", {Json::array()});
  body.only("modalities", {Json::array({"text"})});
  body.only("audio", {});
}

// OpenRouter's `reasoning.exclude` and the older `include_reasoning`, which the parser of the prompt leaves to here.
bool thoughts_hidden(Fields& body) {
  const bool included = body.boolean("include_reasoning").value_or(true);
  const Json* reasoning = body.find("reasoning");
  return !included || (reasoning != nullptr && Fields(*reasoning, "reasoning").boolean("exclude").value_or(false));
}

}  // namespace

Request parse_chat_prompt(Fields& body, const ApiContext& context, ToolList& tools) {
  Request request;
  const Json& messages = expect_array(body.require("messages"), "messages");
  if (messages.empty()) fail_at("messages", "must not be empty");
  for (size_t i = 0; i < messages.size(); ++i) parse_message(messages[i], request, context, at("messages", i));
  parse_continuation(body, request);
  tools = parse_chat_tools(body, context);
  request.tools = tools.text();
  parse_thinking(body, request);
  return request;
}

Request parse_chat_prompt(Fields& body, const ApiContext& context) {
  ToolList tools;
  return parse_chat_prompt(body, context, tools);
}

CompletionRequest parse_chat(const Json& json, const ApiContext& context) {
  Fields body(json, "");
  check_model(body, context);
  ToolList tools;
  Request request = parse_chat_prompt(body, context, tools);
  parse_tool_choice(body.find("tool_choice"), tools, request);
  parse_function_call(body, tools, request);
  check_uncalled_tools(tools.tools, request);
  parse_format(body.find("response_format"), request);
  parse_guided(body, request, context);
  parse_sampling(body, request);
  parse_other_servers(body, request, context);
  request.max_new_tokens = parse_max_tokens(body, {"max_completion_tokens", "max_tokens", "num_predict", "n_predict"});
  const auto top = body.integer("top_logprobs", 0, kLogprobsMax);
  ChatStream stream;
  stream.logprobs = body.boolean("logprobs").value_or(false);
  if (top.value_or(0) > 0 && !stream.logprobs) fail_at("top_logprobs", "needs logprobs to be true");
  if (stream.logprobs) request.logprobs = static_cast<int>(top.value_or(0));
  CompletionRequest completion;
  completion.stream = body.boolean("stream").value_or(false);
  stream.usage = parse_stream_options(body, completion.stream, context);
  const bool parallel = body.boolean("parallel_tool_calls").value_or(!tools.functions);
  completion.one_tool_call = !parallel;
  request.format.parallel_tools = parallel;
  stream.hide_thoughts = thoughts_hidden(body);
  stream.tools = std::move(tools);
  stream.choices = static_cast<int>(body.integer("n", 1, kChoicesMax).value_or(1));
  read_provider_fields(body, context);
  body.done();
  stream.model = context.models.front();
  stream.warnings = context.warnings;
  request.n = stream.choices;
  completion.requests.push_back(std::move(request));
  completion.serializer = chat_serializer(std::move(stream));
  return completion;
}

}  // namespace gemma4
