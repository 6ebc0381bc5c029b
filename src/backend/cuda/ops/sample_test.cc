// The device's choice of tokens against backend/sample.h, which defines it: the same id for the same logits and seed.
#include <algorithm>

#include "backend/cuda/backend_pair_testing.h"
#include "backend/sample.h"

namespace gemma4 {
namespace {

class CudaSampling : public CudaTest {
 protected:
  // Every row of `logits` [rows, vocab] chosen on both sides.
  void expect_same(DType type, int64_t rows, int64_t vocab, const std::vector<float>& logits,
                   const std::vector<SamplingInput>& inputs) {
    const Tensor on_gpu = put(gpu(), type, {rows, vocab}, logits), ids = gpu().alloc(DType::kI32, {rows});
    gpu().sample(ids, on_gpu, inputs);
    std::vector<int32_t> got(static_cast<size_t>(rows));
    gpu().read(got.data(), ids);
    std::vector<int32_t> scratch;
    for (int64_t i = 0; i < rows; ++i) {
      std::vector<float> row(logits.begin() + i * vocab, logits.begin() + (i + 1) * vocab);
      EXPECT_EQ(got[static_cast<size_t>(i)], sample_row(row.data(), vocab, inputs[static_cast<size_t>(i)], scratch))
          << "row " << i << " of " << rows << ", vocabulary " << vocab;
    }
    gpu().release(on_gpu);
    gpu().release(ids);
  }
};

TEST_F(CudaSampling, EveryWish) {
  for (const int64_t vocab : {262144, 2045, 50, 4097}) {
    for (const float spread : {0.5f, 3.0f}) {
      std::vector<SamplingInput> inputs;
      const auto wish = [&](float temperature, int top_k, float top_p, float min_p) {
        SamplingInput s;
        s.temperature = temperature, s.top_k = top_k, s.top_p = top_p, s.min_p = min_p;
        s.seed = 7 * inputs.size() + 1, s.step = inputs.size();
        inputs.push_back(s);
      };
      wish(0, 0, 1, 0), wish(1, 64, 0.95f, 0), wish(0.7f, 40, 1, 0), wish(1, 1, 1, 0), wish(1.3f, 64, 0.5f, 0.02f);
      wish(1, 0, 0.9f, 0), wish(1, 200, 0.99f, 0), wish(1, 0, 1, 0.3f), wish(0.2f, 0, 1, 0), wish(1, 0, 1, 0);
      const auto rows = static_cast<int64_t>(inputs.size());
      const std::vector<float> logits = normal(rows * vocab, spread);
      expect_same(DType::kF32, rows, vocab, logits, inputs);
      expect_same(DType::kBF16, rows, vocab, logits, inputs);
    }
  }
}

TEST_F(CudaSampling, TheUsualWishManyTimes) {
  std::vector<SamplingInput> inputs(8);
  for (int round = 0; round < 30; ++round) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      inputs[i].top_k = 64, inputs[i].top_p = 0.95f, inputs[i].seed = i, inputs[i].step = static_cast<uint64_t>(round);
    }
    expect_same(DType::kF32, 8, 6000, normal(8 * 6000, 2), inputs);
  }
}

TEST_F(CudaSampling, Ties) {
  std::vector<float> logits(5000, 1.0f);
  SamplingInput greedy;
  greedy.temperature = 0;
  expect_same(DType::kF32, 1, 5000, logits, {greedy});
  logits[4321] = 2, logits[4999] = 2;
  expect_same(DType::kF32, 1, 5000, logits, {greedy});
  SamplingInput usual;
  usual.top_k = 64, usual.seed = 5;
  expect_same(DType::kF32, 1, 5000, logits, {usual});
}

TEST_F(CudaSampling, BiasPenaltiesAndMask) {
  const int64_t vocab = 9000;
  const std::vector<std::pair<int32_t, float>> bias = {{17, 5.0f}, {8999, 2.5f}, {4, -100.0f}};
  std::vector<std::pair<int32_t, int32_t>> counts;
  for (int32_t id = 0; id < vocab; id += 3) counts.push_back({id, id % 4});
  std::vector<uint32_t> allowed(280, 0);
  for (size_t i = 0; i < allowed.size(); ++i) allowed[i] = static_cast<uint32_t>(i * 2654435761u);
  std::vector<SamplingInput> inputs(6);
  for (size_t i = 0; i < inputs.size(); ++i) {
    inputs[i].top_k = 50, inputs[i].seed = i;
    if (i % 2) inputs[i].bias = bias;
    if (i == 2 || i == 3) inputs[i].counts = counts, inputs[i].repetition_penalty = 1.3f;
    if (i == 3) inputs[i].presence_penalty = 0.4f, inputs[i].frequency_penalty = 0.2f;
    if (i >= 4) inputs[i].allowed = allowed;
  }
  inputs[5].temperature = 0;
  expect_same(DType::kF32, 6, vocab, normal(6 * vocab, 2), inputs);
}

}  // namespace
}  // namespace gemma4
