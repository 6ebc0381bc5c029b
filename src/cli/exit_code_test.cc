// Exceptions of a command: one sentence on standard error and an exit code, whatever was thrown.
#include "cli/exit_code.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/check.h"

namespace gemma4 {
namespace {

std::pair<int, std::string> outcome(const std::function<int()>& command) {
  testing::internal::CaptureStderr();
  const int code = exit_code_of([&] { return command(); });
  return {code, testing::internal::GetCapturedStderr()};
}

TEST(ExitCode, EveryExceptionIsOneSentence) {
  using Outcome = std::pair<int, std::string>;
  EXPECT_EQ(outcome([] { return 7; }), Outcome(7, ""));
  EXPECT_EQ(outcome([]() -> int { throw Error("no"); }), Outcome(kExitBadInput, "gemma4: no\n"));
  EXPECT_EQ(outcome([]() -> int { throw DeviceError("lost"); }), Outcome(kExitDevice, "gemma4: lost\n"));
  EXPECT_EQ(outcome([]() -> int { throw std::bad_alloc(); }), Outcome(kExitBadInput, "gemma4: out of memory\n"));
  EXPECT_EQ(outcome([]() -> int { throw std::length_error("too long"); }),
            Outcome(kExitBadInput, "gemma4: too long\n"));
  const auto [code, said] = outcome([] {
    std::filesystem::create_directory("/proc/no/such");
    return 0;
  });
  EXPECT_EQ(code, kExitBadInput);
  EXPECT_NE(said.find("/proc/no/such"), std::string::npos) << said;
}

}  // namespace
}  // namespace gemma4
