#include "backend/cpu/targets.h"

#include <gtest/gtest.h>

#include <string>

#include "base/check.h"

namespace gemma4::cpu {
namespace {

// Without this the op tests could compare one target with itself under many names.
TEST(Targets, TheOneAskedForIsTheOneRunning) {
  ASSERT_FALSE(targets().empty());
  const std::string best = targets().front();
  for (const char* name : targets()) {
    use_target(name);
    EXPECT_STREQ(running_target(), name);
  }
  EXPECT_THROW(use_target("PDP11"), Error);
  use_target("");
  EXPECT_EQ(running_target(), best);
}

}  // namespace
}  // namespace gemma4::cpu
