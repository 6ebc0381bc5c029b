#include "engine/logprobs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "text/data_testing.h"

namespace gemma4 {
namespace {

TEST(Logprobs, AreThoseOfASortedSoftmax) {
  const Tokenizer& tokenizer = test::demo();
  std::mt19937 random(3);
  std::vector<float> logits(tokenizer.vocab_size());
  for (float& logit : logits) logit = static_cast<float>(random() % 64) / 4;  // many are equal
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  for (const int top : {0, 1, 20}) {
    const TokenLogprobs found = token_logprobs(tokenizer, logits, 77, top);
    EXPECT_NEAR(found.token.logprob, logits[77] - std::log(sum), 1e-5);
    ASSERT_EQ(found.top.size(), static_cast<size_t>(top));
    for (int i = 0; i < top; ++i) {
      EXPECT_EQ(found.top[i].id, order[i]);
      EXPECT_NEAR(found.top[i].logprob, logits[order[i]] - std::log(sum), 1e-5);
    }
  }
}

}  // namespace
}  // namespace gemma4
