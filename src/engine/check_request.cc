#include "engine/check_request.h"

#include <cmath>
#include <random>
#include <string>

#include "base/random.h"
#include "base/utf8.h"

namespace gemma4 {
namespace {

void need(bool good, const std::string& message) {
  if (!good) throw Error(message);
}

void check_sampling(const RequestSampling& s, const Config& config) {
  if (s.temperature) need(std::isfinite(*s.temperature) && *s.temperature >= 0, "temperature must be 0 or more");
  if (s.top_k) need(*s.top_k >= 0, "top_k must be 0 (all) or more");
  if (s.top_p) need(*s.top_p > 0 && *s.top_p <= 1, "top_p must be more than 0 and at most 1");
  need(s.min_p >= 0 && s.min_p < 1, "min_p must be at least 0 and less than 1");
  need(std::isfinite(s.repetition_penalty) && s.repetition_penalty > 0, "repetition_penalty must be more than 0");
  need(std::abs(s.presence_penalty) <= 2, "presence_penalty must lie in [-2, 2]");
  need(std::abs(s.frequency_penalty) <= 2, "frequency_penalty must lie in [-2, 2]");
  for (const auto& [id, bias] : s.logit_bias) {
    need(id >= 0 && id < config.vocab, "logit_bias names token " + std::to_string(id) +
                                           ", which is outside the vocabulary of " + std::to_string(config.vocab));
    need(std::abs(bias) <= 100, "logit_bias values must lie in [-100, 100]");
  }
}

uint64_t random_seed() {
  static thread_local std::mt19937_64 generator{system_random()};
  // JSON numbers are exact up to 2^53: a reported seed must survive them.
  return generator() >> 11;
}

}  // namespace

ContextError::ContextError(int prompt_tokens, int tools, int max_seq_len)
    : Error("the prompt is " + std::to_string(prompt_tokens) + " tokens long" +
            (tools > 0 ? " (" + std::to_string(tools) + " of them describe the tools)" : "") +
            ", but the context holds " + std::to_string(max_seq_len) + ", the answer included; --max-seq-len sets it"),
      tokens(prompt_tokens),
      tool_tokens(tools),
      limit(max_seq_len) {}

void check_request(const Request& request, const Config& config) {
  check_sampling(request.sampling, config);
  need(request.max_new_tokens >= 0, "max_new_tokens must be 0 (until the context is full) or more");
  need(request.thinking_share >= 0, "thinking_share must not be negative");
  need(request.logprobs >= -1 && request.logprobs <= kLogprobsMax,
       "logprobs must be at most " + std::to_string(kLogprobsMax));
  need(request.prompt_logprobs >= -1 && request.prompt_logprobs <= kLogprobsMax,
       "logprobs must be at most " + std::to_string(kLogprobsMax));
  need(request.prompt_logprobs < 0 || request.images.empty(),
       "log probabilities of a prompt with images are not computed");
  need(request.stop.size() <= kStopsMax, "at most " + std::to_string(kStopsMax) + " stop strings may be given");
  size_t stops = 0;
  for (const std::string& stop : request.stop) {
    need(!stop.empty(), "a stop string is empty");
    need(utf8_valid(stop), "a stop string is not valid UTF-8");
    stops += stop.size();
  }
  need(stops <= kStopBytesMax, "the stop strings together are longer than " + std::to_string(kStopBytesMax) + " bytes");
  need(request.stop_ids.size() <= kStopIdsMax,
       "at most " + std::to_string(kStopIdsMax) + " stop token ids may be given");
  for (const int32_t id : request.stop_ids) {
    need(id >= 0 && id < config.vocab, "stop_token_ids names token " + std::to_string(id) +
                                           ", which is outside the vocabulary of " + std::to_string(config.vocab));
  }
  need(request.min_new_tokens >= 0, "min_tokens must be 0 or more");
  need(request.n >= 1 && request.n <= kChoicesMax, "n must be at least 1 and at most " + std::to_string(kChoicesMax));
  need(request.image_budget >= 0, "the image budget must not be negative");
  need(request.format.type != ResponseFormat::kToolCall || !request.tools.empty(),
       "a tool call is asked for, but there are no tools");
}

SamplingParams resolve_sampling(const RequestSampling& wanted, const GenerationConfig& generation, uint64_t seed) {
  SamplingParams params{wanted};
  params.temperature = wanted.temperature.value_or(generation.do_sample ? generation.temperature : 0);
  params.top_k = wanted.top_k.value_or(generation.top_k);
  params.top_p = wanted.top_p.value_or(generation.top_p);
  params.seed = wanted.seed.value_or(seed > 0 ? seed : random_seed());
  return params;
}

}  // namespace gemma4
