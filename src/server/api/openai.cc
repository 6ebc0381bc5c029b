#include "server/api/openai.h"

#include <algorithm>
#include <charconv>

#include "base/utf8.h"
#include "engine/check_request.h"

namespace gemma4 {
namespace {

const char* error_type(int status) {
  switch (status) {
    case 401:
    case 403:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::vector<std::pair<int32_t, float>> parse_logit_bias(const Json& value) {
  if (!value.is_object()) fail_at("logit_bias", "must be an object from token ids to numbers");
  std::vector<std::pair<int32_t, float>> all;
  for (const auto& [key, bias] : value.items()) {
    int32_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size()) {
      fail_at("logit_bias", "has the key '" + key.substr(0, 40) + "', which is no token id");
    }
    if (!bias.is_number()) fail_at("logit_bias." + key, "must be a number");
    all.emplace_back(id, bias.get<float>());
  }
  return all;
}

size_t characters_of(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

void expect_short(const std::string& text, size_t most, const std::string& path) {
  if (characters_of(text) > most) fail_at(path, "has more than " + std::to_string(most) + " characters");
}

}  // namespace

Json parse_metadata(Fields& body) {
  constexpr size_t kPairsMax = 16, kKeyMax = 64, kValueMax = 512;
  const Json* given = body.find("metadata");
  if (given == nullptr) return Json::object();
  if (!given->is_object()) fail_at("metadata", "must be an object");
  if (given->size() > kPairsMax) {
    fail_at("metadata",
            "has " + std::to_string(given->size()) + " pairs, but up to " + std::to_string(kPairsMax) + " are kept");
  }
  for (const auto& [key, value] : given->items()) {
    if (characters_of(key) > kKeyMax) {
      fail_at("metadata", "has a key of more than " + std::to_string(kKeyMax) + " characters");
    }
    const std::string where = "metadata." + key;
    expect_short(expect_string(value, where), kValueMax, where);
  }
  return *given;
}

std::optional<std::string> parse_user(Fields& body) {
  constexpr size_t kUserMax = 512;
  std::optional<std::string> user = body.string("user");
  if (user) expect_short(*user, kUserMax, "user");
  return user;
}

Json openai_error(const ApiError& error) {
  return {{"error",
           {{"message", error.what()},
            {"type", error_type(error.status)},
            {"param", error.param.empty() ? Json() : Json(error.param)},
            {"code", error.code.empty() ? Json() : Json(error.code)}}}};
}

ApiError openai_error_of(const ContextError& error) {
  std::string message = "This model's maximum context length is " + std::to_string(error.limit) +
                        " tokens. However, your messages resulted in " + std::to_string(error.tokens) + " tokens";
  if (error.tool_tokens > 0) message += " (" + std::to_string(error.tool_tokens) + " of them describe the tools)";
  message += ". Please reduce the length of the messages, or start the server with a larger --max-seq-len.";
  return ApiError(400, message, "messages", "context_length_exceeded");
}

void parse_sampling(Fields& body, Request& request) {
  RequestSampling& s = request.sampling;
  if (const auto v = body.number("temperature", 0, kTemperatureMax)) s.temperature = static_cast<float>(*v);
  if (const auto v = body.number("top_p", 0, 1)) s.top_p = std::max(static_cast<float>(*v), kTopPLeast);
  if (const auto v = body.integer("top_k", -1, INT32_MAX)) s.top_k = static_cast<int>(std::max<int64_t>(*v, 0));
  if (const auto v = body.number("min_p", 0, 1)) s.min_p = static_cast<float>(*v);
  if (const auto v = body.number("repetition_penalty", 0, 100)) s.repetition_penalty = static_cast<float>(*v);
  if (const auto v = body.number("presence_penalty", -2, 2)) s.presence_penalty = static_cast<float>(*v);
  if (const auto v = body.number("frequency_penalty", -2, 2)) s.frequency_penalty = static_cast<float>(*v);
  if (const auto v = body.integer("seed", INT64_MIN, INT64_MAX)) s.seed = static_cast<uint64_t>(*v);
  if (const Json* bias = body.find("logit_bias")) s.logit_bias = parse_logit_bias(*bias);
  if (const auto v = body.integer("image_budget", 1, 1 << 20)) request.image_budget = static_cast<int>(*v);
  request.stop = body.strings("stop");
  std::erase(request.stop, "");  // clients with an empty field for it
}

bool parse_stream_options(Fields& body, bool streamed, const ApiContext& context) {
  if (!streamed) {
    body.hint(context.warnings, "stream_options", {Json::object()});
    return false;
  }
  const Json* options = body.find("stream_options");
  if (options == nullptr) return false;
  Fields fields(*options, "stream_options");
  const bool usage = fields.boolean("include_usage").value_or(false);
  fields.hint(context.warnings, "continuous_usage_stats", {false});
  fields.hint(context.warnings, "include_obfuscation", {false});
  fields.done();
  return usage;
}

bool thinking_wanted(const std::string& effort, const std::string& path, const std::string& also) {
  if (effort == "none") return false;
  for (const char* some : {"minimal", "low", "medium", "high", "xhigh", "max"}) {
    if (effort == some) return true;
  }
  fail_at(path,
          "must be " + also + "one of none, minimal, low, medium, high, xhigh, max (all but none let the model think)");
}

Json logprob_entry(const TokenLogprob& token) {
  Json bytes = Json::array();
  for (const unsigned char c : token.bytes) bytes.push_back(c);
  return {{"token", utf8_repair(token.bytes)}, {"logprob", token.logprob}, {"bytes", std::move(bytes)}};
}

Json logprob_entries(const std::vector<TokenLogprobs>& tokens) {
  Json all = Json::array();
  for (const TokenLogprobs& token : tokens) {
    Json entry = logprob_entry(token.token);
    entry["top_logprobs"] = Json::array();
    for (const TokenLogprob& other : token.top) entry["top_logprobs"].push_back(logprob_entry(other));
    all.push_back(std::move(entry));
  }
  return all;
}

std::string schema_text(const Json& schema, const std::string& path) {
  if (!schema.is_object()) fail_at(path, "must be a JSON schema (an object)");
  return dump(schema);
}

}  // namespace gemma4
