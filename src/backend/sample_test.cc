// sample: every option of SamplingInput, over ref and cpu, which share backend/sample.h, and the draw's own promises.
#include "backend/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "backend/op_testing.h"

namespace gemma4 {
namespace {

class SampleTest : public OpTest {
 protected:
  static std::vector<int32_t> choose(Backend& b, const Floats& logits, int64_t vocab,
                                     const std::vector<SamplingInput>& inputs) {
    const auto rows = static_cast<int64_t>(inputs.size());
    const Tensor values = put_as(b, DType::kF32, logits, {rows, vocab}), ids = b.alloc(DType::kI32, {rows});
    b.sample(ids, values, inputs);
    std::vector<int32_t> out(inputs.size());
    b.read(out.data(), ids);
    EXPECT_EQ(get(b, values), logits);  // logits stay readable
    return out;
  }
  int32_t one(const Floats& logits, const SamplingInput& input) {
    return choose(*be, logits, static_cast<int64_t>(logits.size()), {input})[0];
  }
  // How often each id is drawn over steps 0 .. draws - 1.
  std::map<int32_t, int> histogram(const Floats& logits, SamplingInput input, int draws) {
    std::map<int32_t, int> seen;
    for (int i = 0; i < draws; ++i) {
      input.step = static_cast<uint64_t>(i);
      ++seen[one(logits, input)];
    }
    return seen;
  }
};

SamplingInput greedy() {
  SamplingInput s;
  s.temperature = 0;
  return s;
}

TEST_P(SampleTest, GreedyTakesTheLargestAndOfEqualsTheLowestId) {
  EXPECT_EQ(one({1, 5, 2, 5, 5}, greedy()), 1);
  EXPECT_EQ(one({-3, -7, -3}, greedy()), 0);
}

TEST_P(SampleTest, BiasPenaltiesAndMask) {
  SamplingInput s = greedy();
  const std::vector<std::pair<int32_t, float>> bias = {{2, 4.5f}};
  s.bias = bias;
  EXPECT_EQ(one({1, 5, 2, 5}, s), 2);

  s = greedy();
  s.repetition_penalty = 2;  // 5 -> 2.5, and below zero -1 -> -2
  const std::vector<std::pair<int32_t, int32_t>> seen = {{1, 1}};
  s.counts = seen;
  EXPECT_EQ(one({1, 5, 3}, s), 2);
  EXPECT_EQ(one({-1.5f, -1, -3}, s), 0);

  s = greedy();
  s.counts = seen;
  s.presence_penalty = 2.5f;
  EXPECT_EQ(one({1, 5, 3}, s), 2);
  const std::vector<std::pair<int32_t, int32_t>> in_prompt = {{1, 0}};  // stood in the prompt: presence does not count
  s.counts = in_prompt;
  EXPECT_EQ(one({1, 5, 3}, s), 1);

  s = greedy();
  s.frequency_penalty = 1;
  const std::vector<std::pair<int32_t, int32_t>> thrice = {{1, 3}};
  s.counts = thrice;
  EXPECT_EQ(one({1, 5, 3}, s), 2);

  s = greedy();
  const std::vector<uint32_t> allowed = {0b101};
  s.allowed = allowed;
  EXPECT_EQ(one({1, 5, 3}, s), 2);
}

// Frequencies of 4000 draws lie within four standard deviations of the probabilities.
TEST_P(SampleTest, DrawsFollowTheSoftmax) {
  const Floats logits = {0, 1, 2, -1};
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    SamplingInput s;
    s.temperature = temperature, s.seed = 7;
    const int draws = kSlowBuild ? 1000 : 4000;
    auto seen = histogram(logits, s, draws);
    double total = 0;
    for (const float l : logits) total += std::exp(l / temperature);
    for (int32_t id = 0; id < 4; ++id) {
      const double p = std::exp(logits[static_cast<size_t>(id)] / temperature) / total;
      EXPECT_NEAR(seen[id], draws * p, 4 * std::sqrt(draws * p * (1 - p)) + 1) << id << " at " << temperature;
    }
  }
}

TEST_P(SampleTest, TopKTopPAndMinPCut) {
  const Floats logits = {0, 1, 2, -1, 1.5f};  // shares of the softmax: 2: .47, 4: .28, 1: .17, 0: .06, 3: .02
  SamplingInput s;
  s.top_k = 2;
  EXPECT_EQ(histogram(logits, s, 300).size(), 2u);
  s = SamplingInput();
  s.top_p = 0.5f;  // 2 alone has less than a half: 4 is needed too
  EXPECT_EQ(histogram(logits, s, 300).size(), 2u);
  s.top_p = 0.4f;
  EXPECT_EQ(histogram(logits, s, 300).size(), 1u);
  s = SamplingInput();
  s.min_p = 0.3f;  // of the best's share: keeps 2, 4 and 1
  EXPECT_EQ(histogram(logits, s, 300).size(), 3u);
  s = SamplingInput();
  s.top_k = 1;
  EXPECT_EQ(one(logits, s), 2);
}

// A vocabulary of 31B's size with many equal logits: top_k takes what a whole sort would, of equals the lowest ids.
TEST_P(SampleTest, TopKOfManyIsTheWholeSortsPrefix) {
  constexpr int64_t kVocab = kSlowBuild ? 20000 : 262144;
  Random random(3);
  Floats logits = random.values(kVocab, -30, 30);
  for (float& l : logits) l = std::round(l * 8) / 8;  // 481 values
  std::vector<int32_t> sorted(kVocab);
  std::iota(sorted.begin(), sorted.end(), 0);
  std::stable_sort(sorted.begin(), sorted.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  for (const int k : {1, 64, 1500}) {
    Floats cut(kVocab, -std::numeric_limits<float>::infinity());
    for (int i = 0; i < k; ++i) cut[sorted[i]] = logits[sorted[i]];
    for (const auto order : {0, 1, 2}) {  // as drawn; ascending, so that each is better than those before; descending
      Floats all = logits, few = cut;
      if (order > 0) {
        for (Floats* f : {&all, &few}) {
          Floats moved(kVocab);
          for (int64_t i = 0; i < kVocab; ++i) moved[order == 1 ? kVocab - 1 - i : i] = (*f)[sorted[i]];
          *f = moved;
        }
      }
      std::vector<SamplingInput> whole(40), masked;
      for (size_t i = 0; i < whole.size(); ++i) {
        whole[i].seed = 5, whole[i].step = i, whole[i].top_k = k;
        whole[i].temperature =
            1e4f;  // every candidate is as likely as another: one too many or too few moves all draws
      }
      masked = whole;
      for (SamplingInput& s : masked) s.top_k = 0;
      for (size_t i = 0; i < whole.size(); ++i) {
        const int32_t got = one(all, whole[i]), want = one(few, masked[i]);
        // Ascending, equals lie in the other order, and the cut between them with it: what counts is the logit.
        EXPECT_EQ(all[got], few[want]) << k << " " << order;
        if (order != 1) {
          EXPECT_EQ(got, want) << k << " " << order;
        }
      }
    }
  }
}

TEST_P(SampleTest, SameSeedSameAnswerAloneAndInABatch) {
  Random random(1);
  const int64_t vocab = 2045;
  const Floats logits = random.values(4 * vocab, -4, 4);
  std::vector<SamplingInput> inputs(4);
  for (size_t i = 0; i < 4; ++i) inputs[i].seed = 100 + i, inputs[i].step = i, inputs[i].top_p = 0.95f;
  const std::vector<int32_t> together = choose(*be, logits, vocab, inputs);
  EXPECT_EQ(together, choose(*ref, logits, vocab, inputs));
  for (size_t i = 0; i < 4; ++i) {
    const auto row = logits.begin() + static_cast<int64_t>(i) * vocab;
    EXPECT_EQ(one(Floats(row, row + vocab), inputs[i]), together[i]);
  }
}

// Numbers of one seed or of one step look independent: hardly a value repeats, and they spread evenly.
TEST(UniformDraw, SpreadsOverSeedsAndSteps) {
  for (const bool by_step : {false, true}) {
    std::vector<float> values;
    double sum = 0;
    for (uint64_t i = 0; i < 2000; ++i) {
      values.push_back(by_step ? uniform_draw(42, i) : uniform_draw(i, 42));
      EXPECT_GE(values.back(), 0);
      EXPECT_LT(values.back(), 1);
      sum += values.back();
    }
    EXPECT_NEAR(sum / 2000, 0.5, 0.03);
    std::sort(values.begin(), values.end());
    for (int tenth = 0; tenth < 10; ++tenth) EXPECT_NEAR(values[static_cast<size_t>(200 * tenth)], 0.1 * tenth, 0.04);
    EXPECT_GE(std::unique(values.begin(), values.end()) - values.begin(), 1990);
  }
}

GEMMA4_FOR_EACH_BACKEND(SampleTest);

// Ops reuse the memory of their first call, so a second step allocates nothing.
TEST(CpuBackend, SecondStepAllocatesNothing) {
  const auto be = make_cpu(2);
  Random random(3);
  const HostMatrix host = random_matrix(Format::kInt4, 96, 64, 32, random);
  const Matrix w = be->upload({&host.matrix, 1});
  const Tensor x = put(*be, random.values(40 * 64), {40, 64}), out = be->alloc(DType::kF32, {40, 96});
  KvCache kv = be->kv_alloc({64, 1, 1, 16, 0});
  std::vector<Row> host_rows;
  for (int32_t i = 0; i < 40; ++i) host_rows.push_back({0, i, 0, i});
  const Rows rows{Tensor(), host_rows};
  const Tensor q = out.columns(0, 16).split(1, 16), k = out.columns(16, 16).split(1, 16);
  const auto step = [&] {
    be->linear(out, x, w);
    be->kv_write(kv, k, k, rows);
    be->attention(q, q, kv, rows);
  };
  step();
  const int64_t used = be->memory_used();
  for (int i = 0; i < 3; ++i) step();
  EXPECT_EQ(be->memory_used(), used);
}

}  // namespace
}  // namespace gemma4
