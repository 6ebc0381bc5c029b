// /v1/completions: continues a text. No chat template is added.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>

#include "base/utf8.h"
#include "server/api/build_request.h"
#include "server/api/guided.h"
#include "server/api/openai.h"

namespace gemma4 {
namespace {

constexpr int kMaxTokens = 16;  // OpenAI's default

struct TextStream {
  std::string id = make_id("cmpl-"), model;
  int64_t created = unix_time();
  int per_prompt = 1;  // choices that are made
  int best = 1;        // of those: given, the likeliest ones
  bool usage = false, logprobs = false;
  std::shared_ptr<Warnings> warnings;
  size_t ended = 0;               // choices
  std::vector<std::string> echo;  // [prompts] their texts, where they are to stand before the answers
  std::vector<Choice> done;       // [choices]
  std::vector<size_t> offset;     // [choices] bytes of text so far
  std::vector<size_t> scored;     // [choices] bytes of `echo` whose log probabilities were sent

  Json object() const { return {{"id", id}, {"object", "text_completion"}, {"created", created}, {"model", model}}; }
  std::string begin_of(size_t choice) const { return echo.empty() ? "" : echo[choice / per_prompt]; }
};

// The arrays of this API's log probabilities.
class TextLogprobs {
 public:
  // `offset`: bytes of the text before the first token.
  explicit TextLogprobs(size_t offset) : offset_(offset) {}

  // Of tokens whose text is `text` from the current offset on; control tokens are not in it.
  void add(const std::vector<TokenLogprobs>& tokens, std::string_view text) {
    for (const TokenLogprobs& token : tokens) {
      const bool known = !std::isnan(token.token.logprob);
      Json top = Json::object();
      for (const TokenLogprob& other : token.top) top.emplace(utf8_repair(other.bytes), other.logprob);
      json_["text_offset"].push_back(offset_);
      json_["token_logprobs"].push_back(known ? Json(token.token.logprob) : Json());
      json_["tokens"].push_back(utf8_repair(token.token.bytes));
      json_["top_logprobs"].push_back(known ? std::move(top) : Json());
      if (!text.starts_with(token.token.bytes)) continue;
      text.remove_prefix(token.token.bytes.size());
      offset_ += token.token.bytes.size();
    }
  }
  Json take() { return std::move(json_); }
  size_t offset() const { return offset_; }

 private:
  size_t offset_;
  Json json_ = {{"text_offset", Json::array()},
                {"token_logprobs", Json::array()},
                {"tokens", Json::array()},
                {"top_logprobs", Json::array()}};
};

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

std::string text_chunk(const TextStream& stream, int index, const std::string& text, Json logprobs, Json finish) {
  Json json = stream.object();
  json["choices"].push_back({{"index", index},
                             {"text", text},
                             {"logprobs", std::move(logprobs)},
                             {"finish_reason", std::move(finish)}});
  if (stream.usage) json["usage"] = nullptr;
  if (!stream.usage && stream.ended == stream.done.size()) add_warnings(json, stream.warnings);
  return sse(json);
}

// One computation of the prompt serves all of its choices. The text itself was sent at the begin.
std::string prompt_piece(TextStream& stream, int index, const Event& event) {
  const std::string text = stream.begin_of(index);
  TextLogprobs made(stream.scored[index]);
  made.add(event.logprobs, std::string_view(text).substr(stream.scored[index]));
  stream.scored[index] = made.offset();
  const Json logprobs = made.take();
  std::string out;
  for (int i = 0; i < stream.per_prompt; ++i) out += text_chunk(stream, index + i, "", logprobs, nullptr);
  return out;
}

std::string text_piece(TextStream& stream, int index, const Event& event) {
  const bool done = event.type == Event::kDone;
  const std::string text = event.type == Event::kToolCall ? call_text(event.tool_call) : done ? "" : event.text;
  Json logprobs;
  if (stream.logprobs && !event.logprobs.empty()) {
    TextLogprobs made(stream.offset[index]);
    made.add(event.logprobs, text);
    logprobs = made.take();
  }
  stream.offset[index] += text.size();
  if (done) stream.done[index].usage = event.usage;
  stream.ended += done;
  return text_chunk(stream, index, text, std::move(logprobs), done ? Json(reason(event.finish)) : Json());
}

// The mean log probability of a token, by which `best_of` chooses. An answer without any comes last.
double likeliness(const Choice& choice) {
  if (choice.logprobs.empty()) return -std::numeric_limits<double>::infinity();
  double sum = 0;
  for (const TokenLogprobs& token : choice.logprobs) sum += token.token.logprob;
  return sum / static_cast<double>(choice.logprobs.size());
}

// The choices of one prompt that are given, in order.
std::vector<size_t> best_choices(const TextStream& stream, const std::vector<Choice>& choices, size_t first) {
  std::vector<size_t> order(stream.per_prompt);
  std::iota(order.begin(), order.end(), first);
  if (stream.best < stream.per_prompt) {
    std::ranges::stable_sort(order, std::greater(), [&](size_t i) { return likeliness(choices[i]); });
    order.resize(stream.best);
  }
  return order;
}

Json whole_choice(const TextStream& stream, const std::vector<Choice>& choices, size_t from, size_t index) {
  const Choice& choice = choices[from];
  const std::string begin = stream.begin_of(from);
  std::string text = choice.text;
  for (const ToolCall& call : choice.tool_calls) text += call_text(call);
  Json json = {
      {"index", index}, {"text", begin + text}, {"logprobs", nullptr}, {"finish_reason", reason(choice.finish)}};
  if (!stream.logprobs) return json;
  TextLogprobs logprobs(0);
  if (!stream.echo.empty()) {
    const size_t computed = from / stream.per_prompt * stream.per_prompt;  // the choice that has the prompt's
    logprobs.add(choices[computed].prompt_logprobs, begin);
  }
  logprobs.add(choice.logprobs, text);
  json["logprobs"] = logprobs.take();
  return json;
}

std::string text_whole(const TextStream& stream, const std::vector<Choice>& choices) {
  Json json = stream.object();
  json["choices"] = Json::array();
  for (size_t first = 0; first < choices.size(); first += stream.per_prompt) {
    for (const size_t choice : best_choices(stream, choices, first)) {
      json["choices"].push_back(whole_choice(stream, choices, choice, json["choices"].size()));
    }
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
  serializer.begin = [stream] {
    std::string out;
    for (size_t i = 0; i < stream->done.size() && !stream->echo.empty(); ++i) {
      out += text_chunk(*stream, static_cast<int>(i), stream->begin_of(i), nullptr, nullptr);
    }
    return out;
  };
  serializer.piece = [stream](int index, const Event& event) {
    if (event.type == Event::kPromptLogprobs) return prompt_piece(*stream, index, event);
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

std::string text_of_ids(const std::vector<int32_t>& ids, const ApiContext& context) {
  return context.decode ? context.decode(ids) : "";
}

// One Request for each prompt: a string, an array of strings, an array of ids, or an array of such arrays.
std::vector<Request> parse_prompts(const Json& prompt) {
  std::vector<Request> all;
  const auto add_text_prompt = [&](const Json& text) { all.emplace_back().raw = text.get<std::string>(); };
  if (prompt.is_string()) {
    add_text_prompt(prompt);
    return all;
  }
  if (!prompt.is_array()) fail_at("prompt", "must be a string, token ids, or an array of those");
  if (prompt.empty()) fail_at("prompt", "must not be empty");
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

// `max_tokens`: 0 asks for nothing but the prompt, with `echo` and its log probabilities.
void parse_length(Fields& body, Request& request) {
  const Json* most = body.find("max_tokens");
  const bool limited = most || body.find("n_predict") || body.find("num_predict");
  request.score_only = most && *most == 0;
  if (request.score_only) return;
  request.max_new_tokens = limited ? parse_max_tokens(body, {"max_tokens", "n_predict", "num_predict"}) : kMaxTokens;
}

void parse_choices(Fields& body, bool streamed, TextStream& stream) {
  stream.best = static_cast<int>(body.integer("n", 1, kChoicesMax).value_or(1));
  stream.per_prompt = static_cast<int>(body.integer("best_of", 1, kChoicesMax).value_or(stream.best));
  if (stream.per_prompt < stream.best) fail_at("best_of", "must be at least n");
  if (streamed && stream.per_prompt > stream.best) fail_at("best_of", "cannot be more than n in a stream");
}

}  // namespace

CompletionRequest parse_completions(const Json& json, const ApiContext& context) {
  Fields body(json, "");
  check_model(body, context);
  std::vector<Request> prompts = parse_prompts(body.require("prompt"));
  parse_images(body, prompts, context);
  Request settings;
  parse_sampling(body, settings);
  parse_other_servers(body, settings, context);
  parse_guided(body, settings, context);
  parse_length(body, settings);
  TextStream stream;
  CompletionRequest completion;
  completion.stream = body.boolean("stream").value_or(false);
  stream.usage = parse_stream_options(body, completion.stream, context);
  parse_choices(body, completion.stream, stream);
  if (const auto count = body.integer("logprobs", 0, kLogprobsMax)) {
    stream.logprobs = true;
    settings.logprobs = static_cast<int>(*count);
  }
  if (stream.best < stream.per_prompt && !stream.logprobs) settings.logprobs = 0;  // to choose by
  const bool echo = body.boolean("echo").value_or(false);
  if (echo && stream.logprobs) settings.prompt_logprobs = settings.logprobs;
  body.only("suffix", {""});
  body.ignore({"user", "metadata", "safety_identifier"});
  body.hint(context.warnings, "service_tier", {"auto", "default"});
  body.done();
  if (prompts.size() * stream.per_prompt > kChoicesMax) {
    fail_at("n", "or best_of, times the number of prompts, is more than " + std::to_string(kChoicesMax));
  }
  for (Request& prompt : prompts) {
    if (echo) stream.echo.push_back(prompt.raw ? *prompt.raw : text_of_ids(prompt.ids, context));
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
  stream.scored.resize(stream.done.size());
  for (size_t i = 0; i < stream.done.size(); ++i) stream.offset.push_back(stream.begin_of(i).size());
  completion.serializer = text_serializer(std::move(stream));
  return completion;
}

}  // namespace gemma4
