// Test support of the CUDA backend: the ref backend and the GPU side by side, tensors with the same content on both,
// and the distance between their results.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "base/bf16.h"

namespace gemma4 {

// The same tensor twice: F32 in ref, `type` on the GPU, with values that both hold exactly.
struct Twin {
  Tensor ref, gpu;
};

class CudaTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    try {
      gpu_ = make_cuda(0);
    } catch (const Error& error) {
      why_ = error.what();
    }
    ref_ = make_ref();
  }
  static void TearDownTestSuite() { gpu_.reset(), ref_.reset(); }
  void SetUp() override {
    if (!gpu_) GTEST_SKIP() << "NOT TESTED, there is no GPU: " << why_;
  }

  Backend& gpu() { return *gpu_; }
  Backend& ref() { return *ref_; }

  std::vector<float> normal(int64_t count, float deviation) {
    std::normal_distribution<float> draw(0, deviation);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = round_to_f16(round_to_bf16(draw(random_)));  // exact in both types
    return values;
  }

  Tensor put(Backend& backend, DType type, std::initializer_list<int64_t> shape, const std::vector<float>& values) {
    Tensor t = backend.alloc(type, shape);
    CHECK(t.size() == static_cast<int64_t>(values.size()));
    if (type == DType::kF32) {
      backend.write(t, values.data());
    } else {
      std::vector<uint16_t> bits(values.size());
      for (size_t i = 0; i < bits.size(); ++i) {
        bits[i] = type == DType::kF16 ? float_to_f16(values[i]) : float_to_bf16(values[i]);
      }
      backend.write(t, bits.data());
    }
    return t;
  }
  Twin twin(DType type, std::initializer_list<int64_t> shape, const std::vector<float>& values) {
    return {put(ref(), DType::kF32, shape, values), put(gpu(), type, shape, values)};
  }
  Twin random(DType type, std::initializer_list<int64_t> shape, float deviation = 1) {
    return twin(type, shape, normal(Tensor(nullptr, type, shape).size(), deviation));
  }
  Twin poisoned(DType type, std::initializer_list<int64_t> shape) {  // an output that no op has written yet
    return twin(type, shape, std::vector<float>(static_cast<size_t>(Tensor(nullptr, type, shape).size()), NAN));
  }
  Twin ints(std::initializer_list<int64_t> shape, const std::vector<int32_t>& values) {
    Twin t = {ref().alloc(DType::kI32, shape), gpu().alloc(DType::kI32, shape)};
    CHECK(t.ref.size() == static_cast<int64_t>(values.size()));
    ref().write(t.ref, values.data());
    gpu().write(t.gpu, values.data());
    return t;
  }

  std::vector<float> get(Backend& backend, Tensor t) {
    std::vector<float> values(static_cast<size_t>(t.size()));
    if (t.dtype == DType::kF32) {
      backend.read(values.data(), t);
    } else {
      std::vector<uint16_t> bits(values.size());
      backend.read(bits.data(), t);
      for (size_t i = 0; i < bits.size(); ++i) {
        values[i] = t.dtype == DType::kF16 ? f16_to_float(bits[i]) : bf16_to_float(bits[i]);
      }
    }
    return values;
  }

  static double distance(const std::vector<float>& a, const std::vector<float>& b) {  // |a - b| / |b|; NaN never passes
    double error = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      error += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
      size += double{b[i]} * b[i];
    }
    return std::sqrt(error / (size > 0 ? size : 1));
  }
  double distance(const Twin& t) { return distance(get(gpu(), t.gpu), get(ref(), t.ref)); }

  std::mt19937 random_{20260411};

 private:
  static inline std::unique_ptr<Backend> gpu_, ref_;
  static inline std::string why_;
};

// Tolerance of bf16 results: half a unit in the last place of 8 bits is at most 2^-9, and about 2^-9 / sqrt(3) in the
// root mean square.
inline constexpr double kRounded = 0.0025;
// Tolerance of float16 results: the same with 11 bits.
inline constexpr double kRoundedF16 = kRounded / 8;

}  // namespace gemma4
