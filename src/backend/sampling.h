// Sampling parameters: how a token is chosen from a row of logits. SamplingParams is constant during an answer,
// SamplingInput adds what changes with every step; Backend::sample() takes one SamplingInput for each row. The order of
// work: bias, penalties, mask, then temperature, top_k, top_p, min_p.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

namespace gemma4 {

// The options whose default is the same for every checkpoint. A new option is declared here, once: requests, sequences
// and backends all derive from this struct.
struct SamplingAdjustments {
  float min_p = 0;               // [0, 1): drop tokens less likely than min_p times the likeliest
  float repetition_penalty = 1;  // > 0; over prompt and answer, as transformers does
  float presence_penalty = 0;    // [-2, 2]; over the answer, as OpenAI does
  float frequency_penalty = 0;   // [-2, 2]; over the answer

  bool penalizes() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }
};

// Every option has a value: unset ones were taken from generation_config.json (engine/check_request.h).
struct SamplingParams : SamplingAdjustments {
  float temperature = 1;  // >= 0; 0: the largest logit, ties to the lowest id
  int top_k = 0;          // 0: all
  float top_p = 1;        // (0, 1]
  uint64_t seed = 0;      // the draw depends on (seed, step) only: same seed, same answer, alone or in a batch
};

// What one row needs at one step.
struct SamplingInput : SamplingParams {
  uint64_t step = 0;  // tokens generated so far
  // For the penalties: (id, times generated), ascending; 0: the id occurs in the prompt only. The repetition penalty
  // applies to every id listed (as in transformers), presence and frequency only to generated ones (as OpenAI defines).
  std::span<const std::pair<int32_t, int32_t>> counts;
  std::span<const std::pair<int32_t, float>> bias;  // (id, added to its logit)
  std::span<const uint32_t> allowed;                // one bit for each id that may be chosen; empty: all
};

}  // namespace gemma4
