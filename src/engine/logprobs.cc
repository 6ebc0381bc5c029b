#include "engine/logprobs.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace gemma4 {

namespace {

// Ids of the `top` largest logits, descending; of equal ones the lower id first. One pass: few of a vocabulary's logits
// ever belong to the largest so far.
std::vector<int32_t> likeliest(std::span<const float> logits, int top) {
  const auto before = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  std::vector<int32_t> heap;  // its front is the last of them
  const size_t size = std::min<size_t>(top, logits.size());
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()) && size > 0; ++id) {
    if (heap.size() == size) {
      if (!(logits[id] > logits[heap.front()])) continue;
      std::ranges::pop_heap(heap, before);
      heap.pop_back();
    }
    heap.push_back(id);
    std::ranges::push_heap(heap, before);
  }
  std::ranges::sort_heap(heap, before);
  return heap;
}

}  // namespace

TokenLogprobs token_logprobs(const Tokenizer& tokenizer, std::span<const float> logits, int32_t token, int top) {
  const float peak = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - peak));
  const double log_sum = peak + std::log(sum);
  const auto entry = [&](int32_t id) {
    return TokenLogprob{id, std::string(tokenizer.piece(id)), static_cast<float>(logits[id] - log_sum)};
  };
  TokenLogprobs out{entry(token), {}};
  for (const int32_t id : likeliest(logits, top)) out.top.push_back(entry(id));
  return out;
}

}  // namespace gemma4
