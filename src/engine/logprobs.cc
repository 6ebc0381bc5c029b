#include "engine/logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

namespace gemma4 {

TokenLogprobs token_logprobs(const Tokenizer& tokenizer, std::span<const float> logits, int32_t token, int top) {
  const float peak = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - peak));
  const double log_sum = peak + std::log(sum);
  const auto entry = [&](int32_t id) {
    return TokenLogprob{id, std::string(tokenizer.piece(id)), static_cast<float>(logits[id] - log_sum)};
  };
  TokenLogprobs out{entry(token), {}};
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto end = order.begin() + std::min<size_t>(top, order.size());
  std::partial_sort(order.begin(), end, order.end(),
                    [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  for (auto it = order.begin(); it != end; ++it) out.top.push_back(entry(*it));
  return out;
}

}  // namespace gemma4
