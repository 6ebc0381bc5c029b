// What every op test shares: the backends under test, the data (verb_data_test.h), and the comparison. Each op is
// compared with `ref`; tolerances are docs/NUMERICS.md's.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/op_data_testing.h"

namespace gemma4 {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSlowBuild = true;  // smaller shapes
#else
constexpr bool kSlowBuild = false;
#endif

// "cpu_AVX3", "cpu_AVX2", ...: one for each SIMD target that is compiled in and that this machine runs; usable as
// test names. The CUDA backend computes in bfloat16 and has its own tests against ref, in cuda/.
std::vector<std::string> backends_under_test();
std::unique_ptr<Backend> make_under_test(const std::string& name);

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
