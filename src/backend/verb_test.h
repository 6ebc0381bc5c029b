// What every verb test shares: the backends under test, tensors in and out of a backend, random values, random weights
// in any format, and the comparison. Each verb is compared with `ref`; tolerances are docs/NUMERICS.md's.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace gemma4 {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSlowBuild = true;  // smaller shapes
#else
constexpr bool kSlowBuild = false;
#endif

// "cpu_AVX3", "cpu_AVX2", ...: one for each SIMD target that is compiled in and that this machine runs; "cuda" where
// there is a GPU. Usable as test names.
std::vector<std::string> backends_under_test();
std::unique_ptr<Backend> make_under_test(const std::string& name);

using Floats = std::vector<float>;

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float uniform(float low, float high) { return low + (high - low) * static_cast<float>(engine_() >> 8) * 0x1p-24f; }
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  Floats values(int64_t count, float low = -1, float high = 1);

 private:
  std::mt19937 engine_;
};

// Weights in any Format with plausible values, and the memory they lie in. bf16-exact values where the format allows.
struct HostMatrix {
  Matrix matrix;
  std::vector<std::vector<std::byte>> memory;
};
HostMatrix random_matrix(Format format, int64_t rows, int64_t cols, int group, Random& random);

// Copies to and from a backend's tensors of its activation type (bfloat16 or float32), or another float type.
Tensor put(Backend& be, const Floats& values, std::initializer_list<int64_t> shape);
Tensor put_as(Backend& be, DType type, const Floats& values, std::initializer_list<int64_t> shape);
Tensor put_ints(Backend& be, const std::vector<int32_t>& values, std::initializer_list<int64_t> shape);
Floats get(Backend& be, const Tensor& t);  // [rows, row size] packed, also of a strided view

// Values that survive a rounding to bfloat16, so that every backend computes from the same inputs.
Floats rounded(Floats values);

// Largest |got - want| over the largest |want|.
double relative_error(const Floats& got, const Floats& want);

// The part of the largest output by which a backend may differ from ref: `cpu` where it keeps float32 throughout, a
// bfloat16 rounding or two where activations are bfloat16.
double tolerance(const Backend& be, double cpu);

class VerbTest : public ::testing::TestWithParam<std::string> {
 protected:
  VerbTest() : ref(make_ref()), be(make_under_test(GetParam())) {}
  std::unique_ptr<Backend> ref, be;
};

#define GEMMA4_FOR_EACH_BACKEND(Suite)                                                  \
  INSTANTIATE_TEST_SUITE_P(Backends, Suite, ::testing::ValuesIn(backends_under_test()), \
                           [](const auto& info) { return info.param; })

}  // namespace gemma4
