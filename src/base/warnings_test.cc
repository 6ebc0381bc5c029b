#include "base/warnings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gemma4 {
namespace {

using ::testing::ElementsAre;

TEST(WarningsOfARequest, AreListedOnceInTheirOrder) {
  Warnings warnings;
  for (const char* sentence : {"b", "a", "b"}) warnings.add(sentence);
  EXPECT_THAT(warnings.list(), ElementsAre("b", "a"));
}

TEST(WarningsOfARequest, AreBounded) {
  Warnings warnings;
  for (int i = 0; i < 1000; ++i) warnings.add(std::to_string(i) + std::string(1000, 'x'));
  EXPECT_EQ(warnings.list().size(), Warnings::kCountMax);
  for (const std::string& sentence : warnings.list()) EXPECT_EQ(sentence.size(), Warnings::kBytesMax);
}

TEST(WarningsOfARequest, AreOneLineOfText) {
  Warnings warnings;
  warnings.add("a\nb\x1b[2J\xff");
  EXPECT_THAT(warnings.list(), ElementsAre("a b [2J\xef\xbf\xbd"));
}

}  // namespace
}  // namespace gemma4
