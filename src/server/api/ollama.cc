#include "server/api/ollama.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <limits>
#include <memory>

#include "base/exact_json.h"
#include "base/utf8.h"
#include "server/api/build_request.h"
#include "server/api/ollama_context.h"
#include "server/api/openai.h"

namespace gemma4 {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr std::string_view kLatest = ":latest";

std::string element_of(const std::string& path, size_t index) { return path + "[" + std::to_string(index) + "]"; }

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string without_latest(const std::string& name) {
  return name.ends_with(kLatest) ? name.substr(0, name.size() - kLatest.size()) : name;
}

// Messages.

void parse_pictures(Fields& fields, Request& request, Message& message, const ApiContext& context) {
  const Json* images = fields.find("images");
  if (images == nullptr) return;
  const std::string path = fields.where("images");
  expect_array(*images, path);
  for (size_t i = 0; i < images->size(); ++i) {
    const std::string& text = expect_string((*images)[i], element_of(path, i));
    const bool url = text.starts_with("data:") || text.starts_with("http://") || text.starts_with("https://");
    add_image(request, message,
              url ? image_of_url(text, context, element_of(path, i)) : decode_base64(text, element_of(path, i)));
  }
}

// Calls without ids get some, so that each result finds its call.
void parse_calls(const Json& calls, Message& message, size_t index, const std::string& path) {
  expect_array(calls, path);
  for (size_t i = 0; i < calls.size(); ++i) {
    Fields call(calls[i], element_of(path, i));
    call.ignore({"type", "index"});
    Fields function(call.require("function"), call.where("function"));
    function.ignore({"index", "description"});
    ToolCall parsed;
    parsed.id = call.string("id").value_or("");
    if (parsed.id.empty()) parsed.id = "call_" + std::to_string(index) + "_" + std::to_string(i);
    parsed.name = function.required_string("name");
    if (const Json* arguments = function.find("arguments")) {
      const bool text = arguments->is_string();
      parsed.arguments = text ? arguments->get<std::string>() : dump(*arguments);
      const bool good = text ? is_exact_json(parsed.arguments, kCallDepthMax) : arguments->is_object();
      if (!good) fail_at(function.where("arguments"), "must be a JSON object");
    }
    message.tool_calls.push_back(std::move(parsed));
    function.done();
    call.done();
  }
}

// The call that a result without an id belongs to: the first of that name, or the first at all, that has no result yet.
class OpenCalls {
 public:
  void add(const Message& message) {
    if (!message.tool_calls.empty()) calls_ = message.tool_calls;
  }
  void answer(Message& message) {
    const auto call = std::ranges::find_if(calls_, [&](const ToolCall& one) {
      if (!message.tool_call_id.empty()) return one.id == message.tool_call_id;
      return message.name.empty() || one.name == message.name;
    });
    if (call == calls_.end()) return;
    message.tool_call_id = call->id;
    calls_.erase(call);
  }

 private:
  std::vector<ToolCall> calls_;
};

void parse_message(const Json& value, Request& request, OpenCalls& open, const ApiContext& context, size_t index) {
  Fields fields(value, element_of("messages", index));
  const std::string role = fields.required_string("role");
  if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
    fail_at(fields.where("role"), "must be one of system, user, assistant, tool");
  }
  Message& message = add_message(request, role);
  // As Ollama's templates do: the pictures of a message come before its text.
  parse_pictures(fields, request, message, context);
  if (const auto text = fields.string("content")) add_text(message, *text);
  if (role == "assistant") {
    if (const auto text = fields.string("thinking")) message.reasoning = *text;
    if (const Json* calls = fields.find("tool_calls")) parse_calls(*calls, message, index, fields.where("tool_calls"));
    open.add(message);
  }
  if (role == "tool") {
    if (const auto name = fields.string("name")) message.name = *name;
    if (const auto name = fields.string("tool_name")) message.name = *name;
    message.tool_call_id = fields.string("tool_call_id").value_or("");
    open.answer(message);
  }
  fields.ignore({"name", "tool_name", "tool_calls", "thinking", "tool_call_id"});
  fields.done();
}

// A schema without members that are null: Ollama's own client writes fields so that it does not set. Values (const,
// default, enum, examples) stay as they are.
Json without_nulls(Json schema) {
  std::vector<Json*> left = {&schema};
  while (!left.empty()) {
    Json& value = *left.back();
    left.pop_back();
    if (value.is_object()) {
      for (auto it = value.begin(); it != value.end();) it = it->is_null() ? value.erase(it) : std::next(it);
      for (const auto& [name, member] : value.items()) {
        const bool data = name == "const" || name == "default" || name == "enum" || name == "examples";
        if (member.is_structured() && !data) left.push_back(&member);
      }
    } else {
      for (Json& element : value) {
        if (element.is_structured()) left.push_back(&element);
      }
    }
  }
  return schema;
}

void parse_tool_list(const Json& value, Request& request) {
  Json tools = Json::array();
  expect_array(value, "tools");
  for (size_t i = 0; i < value.size(); ++i) {
    Fields tool(value[i], element_of("tools", i));
    tool.only("type", {"function", ""});
    Fields function(tool.require("function"), tool.where("function"));
    const std::string name = function.required_string("name");
    const Json* given = function.find("parameters");
    const Json parameters = given == nullptr ? Json() : without_nulls(*given);
    tools.push_back(make_tool(name, function.find("description"), given == nullptr ? nullptr : &parameters,
                              tool.where("function")));
    if (function.boolean("strict").value_or(false)) tools.back()["function"]["strict"] = true;
    function.done();
    tool.ignore({"items"});
    tool.done();
  }
  if (!tools.empty()) request.tools = dump(tools);
}

// Options.

std::optional<float> positive_number(Fields& options, const char* name, double most) {
  const auto value = options.number(name, 0, most);
  if (!value) return std::nullopt;
  return static_cast<float>(*value);
}

void parse_penalties(Fields& options, RequestSampling& s) {
  // 0 and 1 both mean none.
  if (const auto v = positive_number(options, "repeat_penalty", 100); v && *v > 0) s.repetition_penalty = *v;
  if (const auto v = options.number("presence_penalty", -2, 2)) s.presence_penalty = static_cast<float>(*v);
  if (const auto v = options.number("frequency_penalty", -2, 2)) s.frequency_penalty = static_cast<float>(*v);
}

void parse_options(const Json* value, Request& request, const ApiContext& context) {
  if (value == nullptr) return;
  Fields options(*value, "options");
  RequestSampling& s = request.sampling;
  s.temperature = positive_number(options, "temperature", 1e6);
  if (const auto v = options.integer("top_k", -1, INT32_MAX)) s.top_k = static_cast<int>(std::max<int64_t>(*v, 0));
  // As in Ollama, 0 switches it off.
  if (const auto v = positive_number(options, "top_p", 1)) s.top_p = *v > 0 ? *v : 1;
  if (const auto v = positive_number(options, "min_p", 1)) s.min_p = *v;
  parse_penalties(options, s);
  const auto seed = options.integer("seed", INT64_MIN, INT64_MAX);
  if (seed && *seed >= 0) s.seed = static_cast<uint64_t>(*seed);  // a negative one is drawn
  if (const auto most = options.integer("num_predict", INT32_MIN, INT32_MAX)) {
    request.max_new_tokens = static_cast<int>(std::max<int64_t>(*most, 0));  // negative: until the context is full
  }
  request.stop = options.strings("stop");
  std::erase(request.stop, "");
  if (const auto length = options.integer("num_ctx", INT32_MIN, INT32_MAX); length && *length > context.max_seq_len) {
    warn(context.warnings, "options.num_ctx " + std::to_string(*length) + " has no effect: the context is " +
                               std::to_string(context.max_seq_len) + " tokens (--max-seq-len)");
  }
  options.only("mirostat", {0});
  options.only("tfs_z", {0, 1, 1.0});
  options.only("typical_p", {0, 1, 1.0});
  // The rest says how another program should use its memory and threads; Ollama takes names that it does not know.
  for (const auto& [name, ignored] : value->items()) {
    static constexpr const char* kRead[] = {"temperature",
                                            "top_k",
                                            "top_p",
                                            "min_p",
                                            "repeat_penalty",
                                            "presence_penalty",
                                            "frequency_penalty",
                                            "seed",
                                            "num_predict",
                                            "stop",
                                            "num_ctx",
                                            "mirostat",
                                            "tfs_z",
                                            "typical_p"};
    if (ignored.is_null() || std::ranges::find(kRead, name) != std::end(kRead)) continue;
    warn(context.warnings, "options." + name.substr(0, 100) + " has no effect here");
  }
}

void parse_format(const Json* value, Request& request) {
  if (value == nullptr || *value == "") return;
  if (*value == "json") {
    request.format.type = ResponseFormat::kJson;
  } else if (value->is_object()) {
    request.format.type = ResponseFormat::kSchema;
    request.format.schema = schema_text(*value, "format");
  } else {
    fail_at("format", "must be \"json\" or a JSON schema (an object)");
  }
}

// Answers.

struct OllamaStream {
  std::string model;
  bool chat = true;
  bool logprobs = false;
  const char* idle_reason = nullptr;  // nothing is asked: "load" or "unload"
  SteadyClock::time_point start = SteadyClock::now();
  std::shared_ptr<Warnings> warnings;
  std::vector<OllamaTurn> turns;  // generate: the conversation before this answer, for `context`
  std::string answer;             // generate: all of it
  Usage usage;
  Finish finish = Finish::kStop;

  Json object() const { return {{"model", model}, {"created_at", ollama_time(now_ns())}}; }

  // A piece of the answer.
  Json with(const std::string& text, const std::string& thinking) const {
    Json json = object();
    if (chat) {
      json["message"] = {{"role", "assistant"}, {"content", text}};
      if (!thinking.empty()) json["message"]["thinking"] = thinking;
    } else {
      json["response"] = text;
      if (!thinking.empty()) json["thinking"] = thinking;
    }
    json["done"] = false;
    return json;
  }
};

int64_t nanoseconds(double milliseconds) { return std::max<int64_t>(1, static_cast<int64_t>(milliseconds * 1e6)); }

Json ollama_call(const ToolCall& call, int index) {
  return {{"id", call.id},
          {"function",
           {{"index", index},
            {"name", call.name},
            {"arguments",
             call.arguments.empty() ? Json::object() : parse_exact_json(call.arguments, 128)}}}};  // from the model
}

void finish(Json& json, const OllamaStream& stream) {
  json["done"] = true;
  if (stream.idle_reason != nullptr) {
    json["done_reason"] = stream.idle_reason;
    return;
  }
  json["done_reason"] = stream.finish == Finish::kLength ? "length" : "stop";
  const Usage& usage = stream.usage;
  const auto total = std::chrono::duration_cast<std::chrono::nanoseconds>(SteadyClock::now() - stream.start).count();
  json["total_duration"] = std::max<int64_t>(1, total);
  json["load_duration"] = nanoseconds(usage.queue_ms);  // what passed before it was begun
  json["prompt_eval_count"] = usage.prompt_tokens;
  json["prompt_eval_duration"] = nanoseconds(usage.image_ms + usage.prefill_ms);
  json["eval_count"] = usage.generated_tokens;
  json["eval_duration"] = nanoseconds(usage.decode_ms);
  if (!stream.chat && !stream.turns.empty()) {
    std::vector<OllamaTurn> turns = stream.turns;
    turns.push_back({"assistant", stream.answer});
    json["context"] = encode_ollama_context(turns);
  }
  add_warnings(json, stream.warnings);
}

std::string line(const Json& json) { return dump(json) + "\n"; }

std::string ollama_piece(OllamaStream& stream, const Event& event) {
  Json json;
  switch (event.type) {
    case Event::kText:
      json = stream.with(event.text, "");
      if (!stream.chat) stream.answer += event.text;
      if (stream.logprobs) json["logprobs"] = logprob_entries(event.logprobs);
      return line(json);
    case Event::kThinking:
      return line(stream.with("", event.text));
    case Event::kToolCall:
      if (event.cut) return "";  // its arguments are no object; done_reason says why
      json = stream.with("", "");
      json["message"]["tool_calls"] = Json::array({ollama_call(event.tool_call, event.tool_index)});
      return line(json);
    case Event::kDone:
      stream.usage = event.usage;
      stream.finish = event.finish;
      return "";
    default:
      return "";
  }
}

std::string ollama_whole(OllamaStream& stream, const std::vector<Choice>& choices) {
  static const Choice kNothing;
  const Choice& choice = choices.empty() ? kNothing : choices.front();
  Json json = stream.with(choice.text, choice.thinking);
  for (size_t i = 0; i + choice.cut_call < choice.tool_calls.size(); ++i) {
    json["message"]["tool_calls"].push_back(ollama_call(choice.tool_calls[i], static_cast<int>(i)));
  }
  if (stream.logprobs) json["logprobs"] = logprob_entries(choice.logprobs);
  stream.usage = choice.usage;
  stream.finish = choice.finish;
  stream.answer = choice.text;
  finish(json, stream);
  return dump(json);
}

ResponseSerializer ollama_serializer(OllamaStream made) {
  auto stream = std::make_shared<OllamaStream>(std::move(made));
  ResponseSerializer serializer;
  serializer.content_type = "application/x-ndjson";
  serializer.whole = [stream](const std::vector<Choice>& choices) { return ollama_whole(*stream, choices); };
  serializer.begin = [] { return std::string(); };
  serializer.piece = [stream](int, const Event& event) { return ollama_piece(*stream, event); };
  serializer.end = [stream] {
    Json json = stream->with("", "");
    finish(json, *stream);
    return line(json);
  };
  serializer.error = [](const ApiError& error) { return line(ollama_error(error)); };
  serializer.ping = line(stream->with("", ""));
  return serializer;
}

// What both endpoints have.
void parse_common(Fields& body, Request& request, OllamaStream& stream, CompletionRequest& completion,
                  const ApiContext& context) {
  stream.model = body.required_string("model");
  check_ollama_model(stream.model, context);
  stream.warnings = context.warnings;
  parse_options(body.find("options"), request, context);
  parse_format(body.find("format"), request);
  if (const Json* think = body.find("think")) parse_think(*think, request);
  completion.stream = body.boolean("stream").value_or(true);
  stream.logprobs = body.boolean("logprobs").value_or(false);
  const auto top = body.integer("top_logprobs", 0, kLogprobsMax);
  if (stream.logprobs) request.logprobs = static_cast<int>(top.value_or(0));
  // The model stays loaded, and a prompt that is too long is refused.
  body.ignore({"keep_alive", "truncate", "shift"});
}

// A request without a prompt only loads a model, which ours always is, or with keep_alive 0 unloads it.
const char* idle_reason(const Json& json) {
  const auto keep = json.find("keep_alive");
  const bool unload = keep != json.end() && (*keep == 0 || *keep == "0" || *keep == "0s");
  return unload ? "unload" : "load";
}

}  // namespace

Json ollama_error(const ApiError& error) { return {{"error", error.what()}}; }

std::string ollama_name(const std::string& model) {
  const size_t slash = model.rfind('/');
  const bool tagged = model.find(':', slash == std::string::npos ? 0 : slash) != std::string::npos;
  return tagged ? model : model + std::string(kLatest);
}

void check_ollama_model(const std::string& name, const ApiContext& context) {
  const std::string wanted = without_latest(name);
  const auto same = [&](const std::string& model) { return without_latest(model) == wanted; };
  if (context.any_model || std::ranges::any_of(context.models, same)) return;
  throw ApiError(404, "model '" + name.substr(0, 200) + "' not found; this server has '" + context.models.front() + "'",
                 "model", "model_not_found");
}

std::string ollama_time(int64_t nanoseconds) {
  const std::time_t seconds = nanoseconds / 1'000'000'000;
  std::tm parts = {};
  gmtime_r(&seconds, &parts);
  char text[64];
  const size_t length = std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + length, sizeof(text) - length, ".%09lldZ", static_cast<long long>(nanoseconds % 1'000'000'000));
  return text;
}

CompletionRequest parse_ollama_chat(const Json& json, const ApiContext& context) {
  Fields body(json, "");
  CompletionRequest completion;
  Request request;
  OllamaStream stream;
  parse_common(body, request, stream, completion, context);
  OpenCalls open;
  if (const Json* messages = body.find("messages")) {
    expect_array(*messages, "messages");
    for (size_t i = 0; i < messages->size(); ++i) parse_message((*messages)[i], request, open, context, i);
  }
  request.chat.continue_final = true;  // a last message of the assistant is a begun answer
  if (const Json* tools = body.find("tools")) parse_tool_list(*tools, request);
  body.done();
  if (request.messages.empty()) {
    stream.idle_reason = idle_reason(json);
  } else {
    completion.requests.push_back(std::move(request));
  }
  completion.serializer = ollama_serializer(std::move(stream));
  return completion;
}

CompletionRequest parse_ollama_generate(const Json& json, const ApiContext& context) {
  Fields body(json, "");
  CompletionRequest completion;
  Request request;
  OllamaStream stream;
  stream.chat = false;
  parse_common(body, request, stream, completion, context);
  const std::string prompt = body.string("prompt").value_or("");
  const std::string system = body.string("system").value_or("");
  body.only("suffix", {""});
  body.only("template", {""});  // the checkpoint's is used; a prompt of one's own goes with `raw`
  const Json* before = body.find("context");
  if (body.boolean("raw").value_or(false)) {
    if (before != nullptr && !before->empty()) fail_at("context", "cannot be combined with raw");
    Message pictures;
    parse_pictures(body, request, pictures, context);
    request.raw = prompt;
  } else {
    if (!system.empty()) stream.turns.push_back({"system", system});
    if (before != nullptr && !before->empty()) stream.turns = decode_ollama_context(*before, system);
    for (const OllamaTurn& turn : stream.turns) add_text(add_message(request, turn.role), turn.text);
    Message& message = add_message(request, "user");
    parse_pictures(body, request, message, context);
    add_text(message, prompt);
    stream.turns.push_back({"user", prompt});
  }
  body.done();
  if (prompt.empty() && request.images.empty()) {
    stream.idle_reason = idle_reason(json);
  } else {
    completion.requests.push_back(std::move(request));
  }
  completion.serializer = ollama_serializer(std::move(stream));
  return completion;
}

}  // namespace gemma4
