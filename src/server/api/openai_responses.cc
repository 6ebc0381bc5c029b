// /v1/responses and /v1/responses/compact. Answers are kept in memory (server/response_store.h), so that a request may
// go on where one ended.
#include <memory>

#include "server/api/build_request.h"
#include "server/api/compaction.h"
#include "server/api/openai.h"
#include "server/api/responses_input.h"
#include "server/api/tool_list.h"
#include "server/response_store.h"

namespace gemma4 {
namespace {

void parse_tool_choice(const Json* choice, ToolList& tools, Request& request) {
  if (choice == nullptr || *choice == "auto") return;
  if (*choice == "none") return request.tools.clear();
  if (*choice != "required" && !choice->is_object()) {
    fail_at("tool_choice", "must be none, auto, required or {\"type\": \"function\", \"name\": ...}");
  }
  if (tools.tools.empty()) fail_at("tool_choice", "asks for a call, but there are no tools");
  if (choice->is_object() && choice->value("type", Json()) == "allowed_tools") {
    Fields allowed(*choice, "tool_choice");
    allowed.only("type", {"allowed_tools"});
    parse_allowed_tools(allowed, tools, request, [](Fields& tool, const std::string&) { return called_name(tool); });
    return allowed.done();
  }
  request.format.type = ResponseFormat::kToolCall;
  if (!choice->is_object()) return;
  Fields fields(*choice, "tool_choice");
  fields.only("type", {"function", "custom"});
  request.format.tool_name = called_name(fields);
  check_tool_name(tools.tools, request.format.tool_name, "tool_choice.name");
  fields.done();
}

void parse_text_format(Fields& body, Request& request, const ApiContext& context) {
  const Json* text = body.find("text");
  if (text == nullptr) return;
  Fields fields(*text, "text");
  fields.hint(context.warnings, "verbosity", {"medium"});
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
      request.format.strict = format.boolean("strict").value_or(false);
    } else if (type != "text") {
      fail_at("text.format.type", "must be text, json_object or json_schema");
    }
    format.done();
  }
  fields.done();
}

void parse_reasoning(Fields& body, Request& request, const ApiContext& context) {
  const Json* reasoning = body.find("reasoning");
  if (reasoning == nullptr) return;
  Fields fields(*reasoning, "reasoning");
  parse_reasoning_amount(fields, request);
  // Thoughts are returned in full, not summarised.
  fields.hint(context.warnings, "summary", {"auto"});
  fields.hint(context.warnings, "generate_summary", {"auto"});
  fields.hints(context.warnings, {"context", "mode"});
  fields.done();
}

void parse_include(Fields& body, Request& request, const ApiContext& context) {
  bool logprobs = false;
  if (const Json* include = body.find("include")) {
    for (const Json& item : expect_array(*include, "include")) {
      if (item == "message.output_text.logprobs") {
        logprobs = true;
      } else if (item != "reasoning.encrypted_content") {  // thoughts are not encrypted
        warn(context.warnings, "include: " + dump(item).substr(0, 60) + " has no effect here");
      }
    }
  }
  const auto top = body.integer("top_logprobs", 0, kLogprobsMax);
  if (top && *top > 0 && !logprobs) fail_at("top_logprobs", "needs include: [\"message.output_text.logprobs\"]");
  if (logprobs) request.logprobs = static_cast<int>(top.value_or(0));
}

// Output.

// The state of a stream.
struct ResponsesState {
  Json response;  // as sent so far
  std::shared_ptr<Warnings> warnings;
  ToolList tools;                                  // of the request, for the client's names of them
  std::function<void(const Json& response)> keep;  // called with the whole response, where it is stored
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

Json call_item(const ToolCall& call, const ToolList& tools) {
  const ToolList::Origin* origin = tools.origin(call.name);
  const bool custom = origin != nullptr && origin->custom;
  Json item = {{"type", custom ? "custom_tool_call" : "function_call"},
               {"id", make_id(custom ? "ctc_" : "fc_")},
               {"call_id", call.id},
               {"name", origin != nullptr ? origin->name : call.name}};
  if (origin != nullptr && !origin->space.empty()) item["namespace"] = origin->space;
  if (custom) {
    item["input"] = custom_input(call.arguments);
  } else {
    item["arguments"] = call.arguments;
  }
  item["status"] = "in_progress";
  return item;
}

const char* item_status(bool cut) { return cut ? "incomplete" : "completed"; }

void add_usage(Json& response, const Usage& usage) {
  response["usage"] = {{"input_tokens", usage.prompt_tokens},
                       {"input_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
                       {"output_tokens", usage.generated_tokens},
                       {"output_tokens_details", {{"reasoning_tokens", usage.thinking_tokens}}},
                       {"total_tokens", usage.prompt_tokens + usage.generated_tokens}};
  response["timings"] = timings(usage);
}

void finish_response(Json& response, Finish finish, const Usage& usage) {
  const bool whole = finish != Finish::kLength;
  response["status"] = whole ? "completed" : "incomplete";
  if (!whole) response["incomplete_details"] = {{"reason", "max_output_tokens"}};
  add_usage(response, usage);
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
    delta["logprobs"] = logprob_entries(event.logprobs);
    for (const Json& entry : delta["logprobs"]) part["logprobs"].push_back(entry);
  }
  return out + stream.event(message ? "response.output_text.delta" : "response.reasoning_text.delta", std::move(delta));
}

bool is_custom(const Json& item) { return item["type"] == "custom_tool_call"; }

std::string begin_call(ResponsesState& stream, const ToolCall& call) {
  std::string out = close_item(stream);
  stream.output().push_back(call_item(call, stream.tools));
  return out + stream.event("response.output_item.added",
                            {{"output_index", stream.index()}, {"item", stream.output().back()}});
}

// The text of a custom tool comes at the end, as a whole.
std::string grow_call(ResponsesState& stream, const std::string& arguments) {
  if (is_custom(stream.output().back())) return "";
  return stream.event(
      "response.function_call_arguments.delta",
      {{"item_id", stream.output().back()["id"]}, {"output_index", stream.index()}, {"delta", arguments}});
}

std::string end_custom_call(ResponsesState& stream, const Json& item) {
  const Json position = {{"item_id", item["id"]}, {"output_index", stream.index()}};
  Json delta = position, done = position;
  delta["delta"] = done["input"] = item["input"];
  const std::string out = stream.event("response.custom_tool_call_input.delta", std::move(delta));
  return out + stream.event("response.custom_tool_call_input.done", std::move(done));
}

std::string end_call(ResponsesState& stream, const Event& event) {
  Json& item = stream.output().back();
  item["status"] = item_status(event.cut);
  std::string done;
  if (is_custom(item)) {
    item["input"] = custom_input(event.tool_call.arguments);
    done = end_custom_call(stream, item);
  } else {
    item["arguments"] = event.tool_call.arguments;
    done = stream.event("response.function_call_arguments.done", {{"item_id", item["id"]},
                                                                  {"output_index", stream.index()},
                                                                  {"name", item["name"]},
                                                                  {"arguments", item["arguments"]}});
  }
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
  if (!choice.text.empty() || (choice.tool_calls.empty() && choice.thinking.empty())) {
    output.push_back(message_item());
    Json part = text_part(choice.text);
    part["logprobs"] = logprob_entries(choice.logprobs);
    output.back()["content"].push_back(std::move(part));
  }
  for (const ToolCall& call : choice.tool_calls) output.push_back(call_item(call, stream.tools));
  for (Json& item : output) item["status"] = item_status(false);
  // As in a stream: what was being written is cut.
  const bool cut = choice.finish == Finish::kLength && (choice.tool_calls.empty() || choice.cut_call);
  if (!output.empty()) output.back()["status"] = item_status(cut);
  finish_response(response, choice.finish, choice.usage);
  add_warnings(response, stream.warnings);
  if (stream.keep) stream.keep(response);
  return dump(response);
}

ResponseSerializer response_serializer(ResponsesState state) {
  auto stream = std::make_shared<ResponsesState>(std::move(state));
  ResponseSerializer serializer;
  serializer.whole = [stream](const std::vector<Choice>& choices) { return response_whole(*stream, choices.front()); };
  serializer.begin = [stream] {
    const std::string created = stream->event("response.created", {{"response", stream->response}});
    return created + stream->event("response.in_progress", {{"response", stream->response}});
  };
  serializer.piece = [stream](int, const Event& event) { return response_piece(*stream, event); };
  serializer.end = [stream] {
    const bool cut = stream->finish == Finish::kLength;
    std::string out;
    if (stream->output().empty()) {  // as in a whole answer
      out = open_item(*stream, message_item(), text_part(""));
      stream->open = ResponsesState::kMessage;
      out += close_item(*stream, cut);
    }
    add_warnings(stream->response, stream->warnings);
    if (stream->keep) stream->keep(stream->response);
    Json members = {{"response", stream->response}};
    add_warnings(members, stream->warnings);  // a client that reads no response object finds them, too
    return out + stream->event(cut ? "response.incomplete" : "response.completed", std::move(members));
  };
  serializer.error = [stream](const ApiError& error) {
    stream->response["status"] = "failed";
    stream->response["error"] = {{"code", "server_error"}, {"message", error.what()}};
    return stream->event("response.failed", {{"response", stream->response}});
  };
  return serializer;
}

void read_provider_fields(Fields& body, const ApiContext& context) {
  parse_metadata(body);
  parse_user(body);
  body.ignore({"safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
               "client_metadata", "session_id"});
  body.only("background", {false});
  body.hint(context.warnings, "truncation", {"disabled"});
  body.hint(context.warnings, "service_tier", {"auto", "default"});
  body.hints(context.warnings, {"max_tool_calls", "context_management", "moderation", "background_options"});
}

// What makes a whole response one that later requests may name; null where the memory for responses is used up.
std::function<void(const Json& response)> keep_response(const History& history, const Json& items,
                                                        const ApiContext& context, const std::string& id) {
  if (!context.responses) return nullptr;
  Json named = items;  // by their ids items are read and deleted
  for (Json& item : named) {
    if (item.is_object() && !item.contains("id")) item["id"] = make_id("item_");
  }
  const std::shared_ptr<StoredTurn> turn = context.responses->begin(context.client, history.before, dump(named));
  if (!turn) {
    warn(context.warnings, "the response is not stored: the memory for responses is used up");
    return nullptr;
  }
  return [store = context.responses, client = context.client, id, turn, conversation = history.conversation](
             const Json& response) { store->keep(client, id, conversation, turn, response); };
}

// Like OpenAI's, the answer repeats the members of the request.
Json make_response(const Json& body, const ApiContext& context) {
  const auto given = [&](const char* name, Json otherwise) {
    const auto it = body.find(name);
    return it == body.end() || it->is_null() ? std::move(otherwise) : *it;
  };
  const Json conversation = given("conversation", nullptr);
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
          {"previous_response_id", given("previous_response_id", nullptr)},
          {"conversation", conversation.is_string() ? Json{{"id", conversation}} : conversation},
          {"reasoning", given("reasoning", Json{{"effort", nullptr}, {"summary", nullptr}})},
          {"store", given("store", true)},
          {"temperature", given("temperature", nullptr)},
          {"text", given("text", Json{{"format", {{"type", "text"}}}})},
          {"tool_choice", given("tool_choice", "auto")},
          {"tools", given("tools", Json::array())},
          {"top_p", given("top_p", nullptr)},
          {"truncation", given("truncation", "disabled")},
          {"usage", nullptr},
          {"user", given("user", nullptr)},
          {"metadata", given("metadata", Json::object())}};
}

// A body of /v1/responses or /v1/responses/compact, read.
struct ResponsesBody {
  History history;
  Json items;            // without the trigger
  bool compact = false;  // the items end with a trigger
  ToolList tools;
  Request request;
  bool stream = false, parallel = true, store = true;
};

void parse_items(Fields& body, ResponsesBody& read, const ApiContext& context) {
  read.history = find_history(body, context);
  body.only("prompt", {});  // a template that OpenAI keeps, in place of an input
  const Json* input = read.history.before ? body.find("input") : &body.require("input");
  read.items = input != nullptr ? input_items(*input, context) : Json::array();
  if (!read.items.empty() && is_compaction_trigger(read.items.back())) {
    read.items.erase(read.items.size() - 1);
    read.compact = true;
  }
  if (read.items.empty() && !read.history.before) {
    fail_at("input", read.compact ? "holds nothing to compact" : "must not be empty");
  }
  parse_input(body, read.history, read.items, read.request, context);
}

ResponsesBody read_responses(const Json& json, const ApiContext& context, bool compact) {
  Fields body(json, "");
  check_model(body, context);
  ResponsesBody read;
  read.compact = compact;
  parse_items(body, read, context);
  Request& request = read.request;
  if (const Json* value = body.find("tools")) read.tools = parse_responses_tools(*value, context);
  request.tools = read.tools.text();
  parse_tool_choice(body.find("tool_choice"), read.tools, request);
  check_uncalled_tools(read.tools.tools, request);
  parse_text_format(body, request, context);
  parse_reasoning(body, request, context);
  parse_include(body, request, context);
  parse_sampling(body, request);
  parse_other_servers(body, request, context);
  request.max_new_tokens = parse_max_tokens(body, {"max_output_tokens"});
  read.stream = body.boolean("stream").value_or(false);
  parse_stream_options(body, read.stream, context);
  read.parallel = body.boolean("parallel_tool_calls").value_or(true);
  request.format.parallel_tools = read.parallel;
  read.store = body.boolean("store").value_or(true);
  read_provider_fields(body, context);
  body.done();
  if (read.compact) ask_for_summary(request, context);
  return read;
}

// What the user said, in the form of an answer's items.
Json kept_output(const std::vector<PlacedItem>& kept) {
  Json output = Json::array();
  for (const PlacedItem& message : kept) {
    if (message.item.value("role", Json()) != "user") continue;
    Json content = message.item.value("content", Json(""));
    const Json id = message.item.value("id", Json());
    if (content.is_string()) content = Json::array({{{"type", "input_text"}, {"text", content}}});
    output.push_back({{"type", "message"},
                      {"id", id.is_string() ? id : Json(make_id("msg_"))},
                      {"status", "completed"},
                      {"role", "user"},
                      {"content", std::move(content)}});
  }
  return output;
}

}  // namespace

CompletionRequest parse_responses(const Json& json, const ApiContext& context) {
  ResponsesBody read = read_responses(json, context, false);
  CompletionRequest completion;
  completion.stream = read.stream;
  completion.one_tool_call = !read.parallel;
  completion.requests.push_back(std::move(read.request));
  Json response = make_response(json, context);
  std::function<void(const Json& response)> keep;
  if (read.store) keep = keep_response(read.history, read.items, context, response["id"]);
  if (read.compact) {
    completion.serializer =
        compaction_serializer({std::move(response), context.warnings, std::move(keep)}, finish_response);
    return completion;
  }
  ResponsesState state;
  state.response = std::move(response);
  state.warnings = context.warnings;
  state.tools = std::move(read.tools);
  state.keep = std::move(keep);
  completion.serializer = response_serializer(std::move(state));
  return completion;
}

CompletionRequest parse_compact(const Json& json, const ApiContext& context) {
  ResponsesBody read = read_responses(json, context, true);
  if (read.stream) fail_at("stream", "is not supported here: a compaction comes as a whole");
  CompletionRequest completion;
  completion.requests.push_back(std::move(read.request));
  Json response = {{"id", make_id("resp_")},
                   {"object", "response.compaction"},
                   {"created_at", unix_time()},
                   {"model", context.models.front()},
                   {"output", kept_output(kept_messages(read.history, read.items, context))}};
  completion.serializer =
      compaction_serializer({std::move(response), context.warnings, nullptr},
                            [](Json& whole, Finish, const Usage& usage) { add_usage(whole, usage); });
  return completion;
}

}  // namespace gemma4
