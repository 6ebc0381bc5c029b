// /v1/responses, without stored state: every request must contain its whole conversation.
#include <memory>

#include "base/exact_json.h"
#include "server/api/build_request.h"
#include "server/api/openai.h"

namespace gemma4 {
namespace {

std::string at(const std::string& path, size_t index) { return path + "[" + std::to_string(index) + "]"; }

// Input.

void parse_part(const Json& value, Request& request, Message& message, const ApiContext& context,
                const std::string& path) {
  Fields part(value, path);
  const std::string type = part.required_string("type");
  if (type == "input_text" || type == "output_text" || type == "text") {
    add_text(message, part.required_string("text"));
    part.ignore({"annotations", "logprobs"});
  } else if (type == "refusal") {
    add_text(message, part.required_string("refusal"));
  } else if (type == "input_image") {
    const std::string where = part.where("image_url");
    add_image(request, message, image_of_url(expect_string(part.require("image_url"), where), context, where));
    if (const auto detail = part.string("detail")) set_image_detail(request, *detail, context, part.where("detail"));
  } else {
    fail_at(part.where("type"),
            "is '" + type.substr(0, 40) + "'; only input_text, input_image and output_text are " + "supported");
  }
  part.done();
}

void parse_content(const Json& content, Request& request, Message& message, const ApiContext& context,
                   const std::string& path) {
  if (content.is_string()) return add_text(message, content.get<std::string>());
  if (!content.is_array()) fail_at(path, "must be a string or an array of parts");
  for (size_t i = 0; i < content.size(); ++i) parse_part(content[i], request, message, context, at(path, i));
}

// Reasoning, text and tool calls of one assistant turn are separate items in this API, but one message of the chat.
Message& assistant(Request& request) {
  if (!request.messages.empty() && request.messages.back().role == "assistant") return request.messages.back();
  return add_message(request, "assistant");
}

void parse_message_item(Fields& item, Request& request, const ApiContext& context) {
  const std::string role = item.required_string("role");
  if (role != "user" && role != "assistant" && role != "system" && role != "developer") {
    fail_at(item.where("role"), "must be one of user, assistant, system, developer");
  }
  Message& message = role == "assistant" ? assistant(request) : add_message(request, role);
  parse_content(item.require("content"), request, message, context, item.where("content"));
}

void parse_reasoning_item(Fields& item, Request& request) {
  Message& message = assistant(request);
  item.ignore({"summary", "encrypted_content"});
  const Json* content = item.find("content");
  if (content == nullptr) return;
  for (const Json& value : expect_array(*content, item.where("content"))) {
    Fields part(value, item.where("content"));
    part.only("type", {"reasoning_text"});
    message.reasoning += part.required_string("text");
    part.done();
  }
}

void parse_item(const Json& value, Request& request, const ApiContext& context, const std::string& path) {
  Fields item(value, path);
  const std::string type = item.string("type").value_or("message");
  if (type == "message") {
    parse_message_item(item, request, context);
  } else if (type == "function_call") {
    ToolCall call;
    call.id = item.required_string("call_id");
    call.name = item.required_string("name");
    call.arguments = item.string("arguments").value_or("");
    if (!call.arguments.empty() && !is_exact_json(call.arguments, kCallDepthMax)) {
      fail_at(item.where("arguments"), "must be a JSON object as a string");
    }
    assistant(request).tool_calls.push_back(std::move(call));
  } else if (type == "function_call_output") {
    Message& message = add_message(request, "tool");
    message.tool_call_id = item.required_string("call_id");
    parse_content(item.require("output"), request, message, context, item.where("output"));
  } else if (type == "reasoning") {
    parse_reasoning_item(item, request);
  } else {
    fail_at(item.where("type"), "is '" + type.substr(0, 40) + "', which is not supported");
  }
  item.ignore({"id", "status"});
  item.done();
}

void parse_input(Fields& body, Request& request, const ApiContext& context) {
  if (const auto text = body.string("instructions")) add_text(add_message(request, "system"), *text);
  const Json& input = body.require("input");
  if (input.is_string()) return add_text(add_message(request, "user"), input.get<std::string>());
  if (!input.is_array() || input.empty()) fail_at("input", "must be a string or an array of items");
  for (size_t i = 0; i < input.size(); ++i) parse_item(input[i], request, context, at("input", i));
}

Json parse_tools(const Json& value) {
  Json tools = Json::array();
  expect_array(value, "tools");
  for (size_t i = 0; i < value.size(); ++i) {
    Fields tool(value[i], at("tools", i));
    tool.only("type", {"function"});
    const std::string name = tool.required_string("name");
    tools.push_back(make_tool(name, tool.find("description"), tool.find("parameters"), at("tools", i)));
    if (tool.boolean("strict").value_or(false)) tools.back()["function"]["strict"] = true;
    tool.done();
  }
  return tools;
}

void parse_tool_choice(const Json* choice, const Json& tools, Request& request) {
  if (choice == nullptr || *choice == "auto") return;
  if (*choice == "none") return request.tools.clear();
  if (*choice != "required" && !choice->is_object()) {
    fail_at("tool_choice", "must be none, auto, required or {\"type\": \"function\", \"name\": ...}");
  }
  if (tools.empty()) fail_at("tool_choice", "asks for a call, but there are no tools");
  request.format.type = ResponseFormat::kToolCall;
  if (!choice->is_object()) return;
  Fields fields(*choice, "tool_choice");
  fields.only("type", {"function"});
  request.format.tool_name = fields.required_string("name");
  check_tool_name(tools, request.format.tool_name, "tool_choice.name");
  fields.done();
}

void parse_text_format(Fields& body, Request& request) {
  const Json* text = body.find("text");
  if (text == nullptr) return;
  Fields fields(*text, "text");
  fields.only("verbosity", {"medium"});
  if (const Json* value = fields.find("format")) {
    Fields format(*value, "text.format");
    const std::string type = format.required_string("type");
    const bool forced = request.format.type == ResponseFormat::kToolCall;  // a call that is forced wins
    if (type == "json_object") {
      if (!forced) request.format.type = ResponseFormat::kJson;
    } else if (type == "json_schema") {
      if (!forced) request.format.type = ResponseFormat::kSchema;
      request.format.schema = schema_text(format.require("schema"), "text.format.schema");
      format.ignore({"name", "description"});
      format.only("strict", {true, false});
    } else if (type != "text") {
      fail_at("text.format.type", "must be text, json_object or json_schema");
    }
    format.done();
  }
  fields.done();
}

void parse_reasoning(Fields& body, Request& request) {
  const Json* reasoning = body.find("reasoning");
  if (reasoning == nullptr) return;
  Fields fields(*reasoning, "reasoning");
  if (const auto effort = fields.string("effort")) {
    request.chat.enable_thinking = thinking_wanted(*effort, "reasoning.effort");
    set_effort(request, *effort);
  }
  fields.only("summary", {"auto"});  // thoughts are returned in full, not summarised
  fields.only("generate_summary", {"auto"});
  fields.done();
}

void parse_include(Fields& body, Request& request) {
  bool logprobs = false;
  if (const Json* include = body.find("include")) {
    for (const Json& item : expect_array(*include, "include")) {
      if (item == "message.output_text.logprobs") {
        logprobs = true;
      } else if (item != "reasoning.encrypted_content") {  // thoughts are not encrypted
        fail_at("include", "may hold message.output_text.logprobs and reasoning.encrypted_content only");
      }
    }
  }
  const auto top = body.integer("top_logprobs", 0, kLogprobsMax);
  if (top && *top > 0 && !logprobs) fail_at("top_logprobs", "needs include: [\"message.output_text.logprobs\"]");
  if (logprobs) request.logprobs = static_cast<int>(top.value_or(0));
}

// Output.

Json output_logprobs(const std::vector<TokenLogprobs>& tokens) {
  Json all = Json::array();
  for (const TokenLogprobs& token : tokens) {
    Json entry = logprob_entry(token.token);
    entry["top_logprobs"] = Json::array();
    for (const TokenLogprob& other : token.top) entry["top_logprobs"].push_back(logprob_entry(other));
    all.push_back(std::move(entry));
  }
  return all;
}

// The state of a stream.
struct ResponsesState {
  Json response;  // as sent so far
  std::shared_ptr<Warnings> warnings;
  int sequence = 0;
  enum { kNone, kReasoning, kMessage } open = kNone;  // the type of the open item, the last of response["output"]
  Finish finish = Finish::kStop;

  Json& output() { return response["output"]; }
  int index() { return static_cast<int>(output().size()) - 1; }

  std::string event(const std::string& type, Json members) {
    Json json = {{"type", type}, {"sequence_number", sequence++}};
    json.update(members);
    return sse(json, type);
  }
};

Json text_part(const std::string& text) {
  return {{"type", "output_text"}, {"text", text}, {"annotations", Json::array()}, {"logprobs", Json::array()}};
}

Json message_item() {
  return {{"type", "message"},
          {"id", make_id("msg_")},
          {"status", "in_progress"},
          {"role", "assistant"},
          {"content", Json::array()}};
}

Json reasoning_item() {
  return {{"type", "reasoning"},
          {"id", make_id("rs_")},
          {"status", "in_progress"},
          {"summary", Json::array()},
          {"content", Json::array()}};
}

Json call_item(const ToolCall& call) {
  return {{"type", "function_call"}, {"id", make_id("fc_")},        {"call_id", call.id},
          {"name", call.name},       {"arguments", call.arguments}, {"status", "in_progress"}};
}

const char* item_status(bool cut) { return cut ? "incomplete" : "completed"; }

void finish_response(Json& response, Finish finish, const Usage& usage) {
  const bool whole = finish != Finish::kLength;
  response["status"] = whole ? "completed" : "incomplete";
  if (!whole) response["incomplete_details"] = {{"reason", "max_output_tokens"}};
  response["usage"] = {{"input_tokens", usage.prompt_tokens},
                       {"input_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
                       {"output_tokens", usage.generated_tokens},
                       {"output_tokens_details", {{"reasoning_tokens", usage.thinking_tokens}}},
                       {"total_tokens", usage.prompt_tokens + usage.generated_tokens}};
  response["timings"] = timings(usage);
}

std::string open_item(ResponsesState& stream, Json item, Json part) {
  stream.output().push_back(item);
  const int index = stream.index();
  std::string out = stream.event("response.output_item.added", {{"output_index", index}, {"item", item}});
  out += stream.event("response.content_part.added",
                      {{"item_id", item["id"]}, {"output_index", index}, {"content_index", 0}, {"part", part}});
  stream.output().back()["content"].push_back(std::move(part));
  return out;
}

std::string close_item(ResponsesState& stream, bool cut = false) {
  if (stream.open == ResponsesState::kNone) return "";
  const std::string type = stream.open == ResponsesState::kMessage ? "output_text" : "reasoning_text";
  stream.open = ResponsesState::kNone;
  Json& item = stream.output().back();
  item["status"] = item_status(cut);
  const Json position = {{"item_id", item["id"]}, {"output_index", stream.index()}, {"content_index", 0}};
  Json text = position, part = position;
  text["text"] = item["content"][0]["text"];
  if (type == "output_text") text["logprobs"] = item["content"][0]["logprobs"];
  part["part"] = item["content"][0];
  std::string out = stream.event("response." + type + ".done", std::move(text));
  out += stream.event("response.content_part.done", std::move(part));
  return out + stream.event("response.output_item.done", {{"output_index", stream.index()}, {"item", item}});
}

std::string grow_item(ResponsesState& stream, const Event& event) {
  const bool message = event.type == Event::kText;
  const auto wanted = message ? ResponsesState::kMessage : ResponsesState::kReasoning;
  std::string out;
  if (stream.open != wanted) {
    out = close_item(stream);
    out += message ? open_item(stream, message_item(), text_part(""))
                   : open_item(stream, reasoning_item(), {{"type", "reasoning_text"}, {"text", ""}});
    stream.open = wanted;
  }
  Json& item = stream.output().back();
  Json& part = item["content"][0];
  part["text"].get_ref<std::string&>() += event.text;
  Json delta = {{"item_id", item["id"]}, {"output_index", stream.index()}, {"content_index", 0}, {"delta", event.text}};
  if (message) {
    delta["logprobs"] = output_logprobs(event.logprobs);
    for (const Json& entry : delta["logprobs"]) part["logprobs"].push_back(entry);
  }
  return out + stream.event(message ? "response.output_text.delta" : "response.reasoning_text.delta", std::move(delta));
}

std::string begin_call(ResponsesState& stream, const ToolCall& call) {
  std::string out = close_item(stream);
  stream.output().push_back(call_item(call));
  return out + stream.event("response.output_item.added",
                            {{"output_index", stream.index()}, {"item", stream.output().back()}});
}

std::string grow_call(ResponsesState& stream, const std::string& arguments) {
  return stream.event(
      "response.function_call_arguments.delta",
      {{"item_id", stream.output().back()["id"]}, {"output_index", stream.index()}, {"delta", arguments}});
}

std::string end_call(ResponsesState& stream, const Event& event) {
  Json& item = stream.output().back();
  item["arguments"] = event.tool_call.arguments;
  item["status"] = item_status(event.cut);
  const std::string done = stream.event("response.function_call_arguments.done", {{"item_id", item["id"]},
                                                                                  {"output_index", stream.index()},
                                                                                  {"name", item["name"]},
                                                                                  {"arguments", item["arguments"]}});
  return done + stream.event("response.output_item.done", {{"output_index", stream.index()}, {"item", item}});
}

std::string response_piece(ResponsesState& stream, const Event& event) {
  switch (event.type) {
    case Event::kText:
    case Event::kThinking:
      return grow_item(stream, event);
    case Event::kToolCallBegin:
      return begin_call(stream, event.tool_call);
    case Event::kToolCallArguments:
      return grow_call(stream, event.text);
    case Event::kToolCall:
      return end_call(stream, event);
    default:
      break;
  }
  stream.finish = event.finish;
  std::string out = close_item(stream, event.finish == Finish::kLength);
  finish_response(stream.response, event.finish, event.usage);
  return out;
}

std::string response_whole(const ResponsesState& stream, const Choice& choice) {
  Json response = stream.response;
  Json& output = response["output"];
  if (!choice.thinking.empty()) {
    output.push_back(reasoning_item());
    output.back()["content"].push_back({{"type", "reasoning_text"}, {"text", choice.thinking}});
  }
  if (!choice.text.empty() || choice.tool_calls.empty()) {
    output.push_back(message_item());
    Json part = text_part(choice.text);
    part["logprobs"] = output_logprobs(choice.logprobs);
    output.back()["content"].push_back(std::move(part));
  }
  for (const ToolCall& call : choice.tool_calls) output.push_back(call_item(call));
  for (Json& item : output) item["status"] = item_status(false);
  // As in a stream: what was being written is cut.
  const bool cut = choice.finish == Finish::kLength && (choice.tool_calls.empty() || choice.cut_call);
  if (!output.empty()) output.back()["status"] = item_status(cut);
  finish_response(response, choice.finish, choice.usage);
  add_warnings(response, stream.warnings);
  return dump(response);
}

ResponseSerializer response_serializer(Json response, const std::shared_ptr<Warnings>& warnings) {
  auto stream = std::make_shared<ResponsesState>();
  stream->response = std::move(response);
  stream->warnings = warnings;
  ResponseSerializer serializer;
  serializer.whole = [stream](const std::vector<Choice>& choices) { return response_whole(*stream, choices.front()); };
  serializer.begin = [stream] {
    const std::string created = stream->event("response.created", {{"response", stream->response}});
    return created + stream->event("response.in_progress", {{"response", stream->response}});
  };
  serializer.piece = [stream](int, const Event& event) { return response_piece(*stream, event); };
  serializer.end = [stream] {
    const bool cut = stream->finish == Finish::kLength;
    add_warnings(stream->response, stream->warnings);
    Json members = {{"response", stream->response}};
    add_warnings(members, stream->warnings);  // a client that reads no response object finds them, too
    return stream->event(cut ? "response.incomplete" : "response.completed", std::move(members));
  };
  serializer.error = [stream](const ApiError& error) {
    stream->response["status"] = "failed";
    stream->response["error"] = {{"code", "server_error"}, {"message", error.what()}};
    return stream->event("response.failed", {{"response", stream->response}});
  };
  return serializer;
}

// Like OpenAI's, the answer repeats the members of the request.
Json make_response(const Json& body, const ApiContext& context) {
  const auto given = [&](const char* name, Json otherwise) {
    const auto it = body.find(name);
    return it == body.end() || it->is_null() ? std::move(otherwise) : *it;
  };
  return {{"id", make_id("resp_")},
          {"object", "response"},
          {"created_at", unix_time()},
          {"status", "in_progress"},
          {"error", nullptr},
          {"incomplete_details", nullptr},
          {"instructions", given("instructions", nullptr)},
          {"max_output_tokens", given("max_output_tokens", nullptr)},
          {"model", context.models.front()},
          {"output", Json::array()},
          {"parallel_tool_calls", given("parallel_tool_calls", true)},
          {"previous_response_id", nullptr},
          {"reasoning", given("reasoning", Json{{"effort", nullptr}, {"summary", nullptr}})},
          {"store", false},
          {"temperature", given("temperature", nullptr)},
          {"text", given("text", Json{{"format", {{"type", "text"}}}})},
          {"tool_choice", given("tool_choice", "auto")},
          {"tools", given("tools", Json::array())},
          {"top_p", given("top_p", nullptr)},
          {"truncation", "disabled"},
          {"usage", nullptr},
          {"user", given("user", nullptr)},
          {"metadata", given("metadata", Json::object())}};
}

}  // namespace

CompletionRequest parse_responses(const Json& json, const ApiContext& context) {
  Fields body(json, "");
  check_model(body, context);
  Request request;
  parse_input(body, request, context);
  Json tools = Json::array();
  if (const Json* value = body.find("tools")) tools = parse_tools(*value);
  if (!tools.empty()) request.tools = dump(tools);
  parse_tool_choice(body.find("tool_choice"), tools, request);
  parse_text_format(body, request);
  parse_reasoning(body, request);
  parse_include(body, request);
  parse_sampling(body, request);
  request.max_new_tokens = static_cast<int>(body.integer("max_output_tokens", 1, INT32_MAX).value_or(0));
  CompletionRequest completion;
  completion.stream = body.boolean("stream").value_or(false);
  if (const Json* options = body.find("stream_options")) {
    Fields fields(*options, "stream_options");
    fields.only("include_obfuscation", {false});
    fields.done();
  }
  const bool parallel = body.boolean("parallel_tool_calls").value_or(true);
  completion.one_tool_call = !parallel;
  request.format.parallel_tools = parallel;
  body.only("store", {false});
  body.only("background", {false});
  body.only("truncation", {"disabled"});
  body.hint(context.warnings, "service_tier", {"auto", "default"});
  body.ignore({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"});
  body.done();
  completion.requests.push_back(std::move(request));
  completion.serializer = response_serializer(make_response(json, context), context.warnings);
  return completion;
}

}  // namespace gemma4
