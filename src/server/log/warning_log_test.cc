#include "server/log/warning_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gemma4 {
namespace {

using ::testing::ElementsAre;

TEST(WarningLog, WritesASentenceOnce) {
  std::vector<std::string> lines;
  WarningLog log([&](const std::string& line) { lines.push_back(line); });
  const auto warnings = std::make_shared<Warnings>();
  log.log("/a", nullptr);
  warnings->add("one");
  log.log("/a", warnings);
  warnings->add("two");
  log.log("/a", warnings);
  log.log("/b", warnings);
  EXPECT_THAT(lines, ElementsAre("gemma4: /a: one", "gemma4: /a: two"));
}

TEST(WarningLog, RemembersABoundedNumber) {
  size_t lines = 0;
  WarningLog log([&](const std::string&) { ++lines; });
  for (int i = 0; i < 3000; ++i) {
    const auto warnings = std::make_shared<Warnings>();
    warnings->add(std::to_string(i));
    log.log("/a", warnings);
  }
  EXPECT_EQ(lines, WarningLog::kSentencesMax);
}

}  // namespace
}  // namespace gemma4
