// A short run of every fuzz target, always the same inputs. Long runs: build/asan/fuzzer (fuzz/main.cc).
#include <gtest/gtest.h>

#include "base/mutate_testing.h"

namespace gemma4 {
namespace {

class Fuzz : public ::testing::TestWithParam<size_t> {};

TEST_P(Fuzz, TakesOrRefusesDamagedInput) {
  const FuzzTarget& target = fuzz_targets()[GetParam()];
  for (const std::string& seed : target.seeds()) EXPECT_NO_THROW(target.run(seed));
  Mutator mutator(target, 1);
  int taken = 0, refused = 0;
  for (int round = 0; round < 400; ++round) ++(run_fuzz_input(target, mutator.next()) ? taken : refused);
  EXPECT_GT(refused, 0);
  if (target.generate) {
    EXPECT_GT(taken, 200);  // they get past the door
  }
  EXPECT_EQ(taken + refused, 400);
}

INSTANTIATE_TEST_SUITE_P(Targets, Fuzz, ::testing::Range(size_t{0}, fuzz_targets().size()),
                         [](const auto& info) { return fuzz_targets()[info.param].name; });

}  // namespace
}  // namespace gemma4
