// check_request: is every number of a Request in its range? Also where unset sampling options get their values.
#pragma once

#include "engine/request.h"
#include "model/config.h"

namespace gemma4 {

// OpenAI's bound, for its API and for what people type. It is no bound of check_request(): Ollama's API takes more.
constexpr float kTemperatureMax = 2;

// Throws Error that names the first value that is out of range.
void check_request(const Request& request, const Config& config);

// Fills in what the request leaves unset: from `generation`, and for the seed `seed` (0: one drawn at random).
SamplingParams resolve_sampling(const RequestSampling& wanted, const GenerationConfig& generation, uint64_t seed);

}  // namespace gemma4
