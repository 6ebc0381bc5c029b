// What the op tests share: the backends under test, the data (op_data_testing.h) and the comparison. Each op is
// compared with `ref`, within the tolerances of docs/NUMERICS.md.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/op_data_testing.h"
#include "base/slow_build_testing.h"

namespace gemma4 {

// "cpu_AVX3", "cpu_AVX2", ...: one for each SIMD target that is compiled in and that this machine runs; usable as
// test names. The CUDA backend computes in bfloat16 and has its own tests against ref, in cuda/.
std::vector<std::string> backends_under_test();
std::unique_ptr<Backend> make_under_test(const std::string& name);

// Largest |got - want| over the largest |want|.
double relative_error(const Floats& got, const Floats& want);

// The difference from ref that a backend may have, relative to the largest output: `cpu` for a backend with float32
// activations, one or two bfloat16 roundings for bfloat16 activations.
double tolerance(const Backend& be, double cpu);

class OpTest : public ::testing::TestWithParam<std::string> {
 protected:
  OpTest() : ref(make_ref()), be(make_under_test(GetParam())) {}
  std::unique_ptr<Backend> ref, be;
};

#define GEMMA4_FOR_EACH_BACKEND(Suite)                                                  \
  INSTANTIATE_TEST_SUITE_P(Backends, Suite, ::testing::ValuesIn(backends_under_test()), \
                           [](const auto& info) { return info.param; })

}  // namespace gemma4
