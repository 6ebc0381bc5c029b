// How a token is chosen from a row of logits: what Backend::sample() takes.
#pragma once

#include <cstdint>
#include <span>
#include <utility>

namespace gemma4 {

// How to choose one token from one row of logits. Order: bias, penalties, mask, then temperature, top_k, top_p, min_p.
struct Sampling {
  float temperature = 1;  // 0: the largest logit, ties to the lowest id
  int top_k = 0;          // 0: all
  float top_p = 1;
  float min_p = 0;
  uint64_t seed = 0;  // the draw depends on (seed, step) only: same seed, same answer, alone or in a batch
  uint64_t step = 0;  // tokens generated so far
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  // For the penalties: (id, times generated), ascending; 0: it stands in the prompt alone. Repetition concerns every id
  // listed (as in transformers), presence and frequency only what was generated (as OpenAI defines them).
  std::span<const std::pair<int32_t, int32_t>> counts;
  std::span<const std::pair<int32_t, float>> bias;  // (id, added to its logit)
  std::span<const uint32_t> allowed;                // bit i of the whole: id i may be chosen; empty: all
};

}  // namespace gemma4
