// /v1/completions: continues a text. No chat template is added.
#include <memory>

#include "base/utf8.h"
#include "server/api/build_request.h"
#include "server/api/openai.h"

namespace gemma4 {
namespace {

struct TextStream {
  std::string id = make_id("cmpl-"), model;
  int64_t created = unix_time();
  int per_prompt = 1;
  bool usage = false, logprobs = false;
  std::shared_ptr<Warnings> warnings;
  size_t ended = 0;            // choices
  std::vector<Choice> done;    // [choices]
  std::vector<size_t> offset;  // [choices] bytes of text so far

  Json object() const { return {{"id", id}, {"object", "text_completion"}, {"created", created}, {"model", model}}; }
};

Json text_logprobs(const std::vector<TokenLogprobs>& tokens, size_t offset) {
  Json out = {{"text_offset", Json::array()},
              {"token_logprobs", Json::array()},
              {"tokens", Json::array()},
              {"top_logprobs", Json::array()}};
  for (const TokenLogprobs& token : tokens) {
    Json top = Json::object();
    for (const TokenLogprob& other : token.top) top[utf8_repair(other.bytes)] = other.logprob;
    out["text_offset"].push_back(offset);
    out["token_logprobs"].push_back(token.token.logprob);
    out["tokens"].push_back(utf8_repair(token.token.bytes));
    out["top_logprobs"].push_back(std::move(top));
    offset += token.token.bytes.size();
  }
  return out;
}

Json text_usage(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.generated_tokens},
          {"total_tokens", usage.prompt_tokens + usage.generated_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

// This API has no field for tool calls, so a call is written as text.
std::string call_text(const ToolCall& call) { return call.name + "(" + call.arguments + ")"; }

// An answer that ends with a tool call has the finish reason "stop": this API has no other.
const char* reason(Finish finish) { return finish == Finish::kLength ? "length" : "stop"; }

std::string text_piece(TextStream& stream, int index, const Event& event) {
  std::string text = event.type == Event::kToolCall ? call_text(event.tool_call) : event.text;
  Json choice = {{"index", index}, {"text", text}, {"logprobs", nullptr}, {"finish_reason", nullptr}};
  if (stream.logprobs && !event.logprobs.empty())
    choice["logprobs"] = text_logprobs(event.logprobs, stream.offset[index]);
  stream.offset[index] += text.size();
  if (event.type == Event::kDone) {
    choice["text"] = "";
    choice["finish_reason"] = reason(event.finish);
    stream.done[index].usage = event.usage;
    ++stream.ended;
  }
  Json json = stream.object();
  json["choices"].push_back(std::move(choice));
  if (stream.usage) json["usage"] = nullptr;
  if (!stream.usage && stream.ended == stream.done.size()) add_warnings(json, stream.warnings);
  return sse(json);
}

std::string text_whole(const TextStream& stream, const std::vector<Choice>& choices) {
  Json json = stream.object();
  json["choices"] = Json::array();
  for (size_t i = 0; i < choices.size(); ++i) {
    std::string text = choices[i].text;
    for (const ToolCall& call : choices[i].tool_calls) text += call_text(call);
    json["choices"].push_back({{"index", i},
                               {"text", std::move(text)},
                               {"logprobs", stream.logprobs ? text_logprobs(choices[i].logprobs, 0) : Json()},
                               {"finish_reason", reason(choices[i].finish)}});
  }
  json["usage"] = text_usage(total_usage(choices, stream.per_prompt));
  json["timings"] = timings(choices.front().usage);
  add_warnings(json, stream.warnings);
  return dump(json);
}

ResponseSerializer text_serializer(TextStream made) {
  auto stream = std::make_shared<TextStream>(std::move(made));
  ResponseSerializer serializer;
  serializer.whole = [stream](const std::vector<Choice>& choices) { return text_whole(*stream, choices); };
  serializer.begin = [] { return std::string(); };
  serializer.piece = [stream](int index, const Event& event) {
    return event.type == Event::kThinking ? std::string() : text_piece(*stream, index, event);
  };
  serializer.end = [stream] {
    std::string out;
    if (stream->usage) {
      Json json = stream->object();
      json["choices"] = Json::array();
      json["usage"] = text_usage(total_usage(stream->done, stream->per_prompt));
      add_warnings(json, stream->warnings);
      out = sse(json);
    }
    return out + "data: [DONE]\n\n";
  };
  serializer.error = [](const ApiError& error) { return sse(openai_error(error)); };
  return serializer;
}

std::vector<int32_t> parse_ids(const Json& array, const std::string& path) {
  std::vector<int32_t> ids;
  for (const Json& id : array) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX) fail_at(path, "must hold token ids only");
    ids.push_back(id.get<int32_t>());
  }
  if (ids.empty()) fail_at(path, "must not be empty");
  return ids;
}

// One Request for each prompt: a string, an array of strings, an array of ids, or an array of such arrays.
std::vector<Request> parse_prompts(const Json& prompt) {
  std::vector<Request> all;
  const auto add_text_prompt = [&](const Json& text) { all.emplace_back().raw = text.get<std::string>(); };
  if (prompt.is_string()) {
    add_text_prompt(prompt);
    return all;
  }
  if (!prompt.is_array() || prompt.empty()) fail_at("prompt", "must be a string, token ids, or an array of those");
  if (prompt.front().is_number()) {
    all.emplace_back().ids = parse_ids(prompt, "prompt");
    return all;
  }
  if (prompt.size() > kChoicesMax) fail_at("prompt", "may hold at most " + std::to_string(kChoicesMax) + " prompts");
  for (size_t i = 0; i < prompt.size(); ++i) {
    const std::string path = "prompt[" + std::to_string(i) + "]";
    if (prompt[i].is_string()) {
      add_text_prompt(prompt[i]);
    } else {
      all.emplace_back().ids = parse_ids(expect_array(prompt[i], path), path);
    }
  }
  return all;
}

// `images`, an extension: data: URLs for the <|image|> placeholders of a text prompt.
void parse_images(Fields& body, std::vector<Request>& prompts, const ApiContext& context) {
  const std::vector<std::string> urls = body.strings("images");
  if (urls.empty()) return;
  if (prompts.size() != 1 || !prompts[0].raw) fail_at("images", "needs exactly one prompt, and that as text");
  for (size_t i = 0; i < urls.size(); ++i) {
    prompts[0].images.push_back(image_of_url(urls[i], context, "images[" + std::to_string(i) + "]"));
  }
}

}  // namespace

CompletionRequest parse_completions(const Json& json, const ApiContext& context) {
  Fields body(json, "");
  check_model(body, context);
  std::vector<Request> prompts = parse_prompts(body.require("prompt"));
  parse_images(body, prompts, context);
  Request settings;
  parse_sampling(body, settings);
  settings.max_new_tokens =
      static_cast<int>(body.integer("max_tokens", 1, INT32_MAX).value_or(16));  // OpenAI's default
  settings.ignore_eos = body.boolean("ignore_eos").value_or(false);
  TextStream stream;
  if (const auto count = body.integer("logprobs", 0, kLogprobsMax)) {
    stream.logprobs = true;
    settings.logprobs = static_cast<int>(*count);
  }
  CompletionRequest completion;
  completion.stream = body.boolean("stream").value_or(false);
  if (const Json* options = body.find("stream_options")) {
    if (!completion.stream) fail_at("stream_options", "needs stream to be true");
    Fields fields(*options, "stream_options");
    stream.usage = fields.boolean("include_usage").value_or(false);
    fields.only("include_obfuscation", {false});
    fields.done();
  }
  stream.per_prompt = static_cast<int>(body.integer("n", 1, kChoicesMax).value_or(1));
  body.only("best_of", {1, stream.per_prompt});
  body.only("echo", {false});
  body.only("suffix", {""});
  body.ignore({"user"});
  body.hint(context.warnings, "service_tier", {"auto", "default"});
  body.done();
  if (prompts.size() * stream.per_prompt > kChoicesMax) {
    fail_at("n", "times the number of prompts is more than " + std::to_string(kChoicesMax));
  }
  for (Request& prompt : prompts) {
    Request request = settings;
    request.ids = std::move(prompt.ids);
    request.raw = std::move(prompt.raw);
    request.images = std::move(prompt.images);
    request.n = stream.per_prompt;
    completion.requests.push_back(std::move(request));
  }
  stream.model = context.models.front();
  stream.warnings = context.warnings;
  stream.done.resize(completion.requests.size() * stream.per_prompt);
  stream.offset.resize(stream.done.size());
  completion.serializer = text_serializer(std::move(stream));
  return completion;
}

}  // namespace gemma4
