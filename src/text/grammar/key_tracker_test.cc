#include "text/grammar/key_tracker.h"

#include <gtest/gtest.h>

namespace gemma4 {
namespace {

bool repeats_after(const std::string& before, const std::string& text) {
  KeyTracker keys;
  keys.read(before);
  return keys.repeats(text);
}

TEST(KeyTracker, FindsAKeyThatIsRepeated) {
  EXPECT_TRUE(repeats_after(R"({"a":1,"a)", "\""));
  EXPECT_TRUE(repeats_after(R"({"a":1)", R"(,"a":)"));
  EXPECT_TRUE(repeats_after(R"({"a":1,"b":[{"c":2},3])", R"(, "b")"));
  EXPECT_TRUE(repeats_after(R"({"a":{"b":1)", R"(},"a":)"));
  EXPECT_TRUE(repeats_after(R"({"a":{"b":1)", R"(},"c":1,"c":)"));
  EXPECT_TRUE(repeats_after("{", R"("x":{"y":1,"y":)"));
  EXPECT_TRUE(repeats_after(R"({"a\n\u00e9":1,")", "a\\u000a\xc3\xa9\""));
  EXPECT_FALSE(repeats_after(R"({"a\n\u00e9":1,")", "a"));
  EXPECT_TRUE(repeats_after(R"({"\"":1,")", R"(\u0022")"));
}

TEST(KeyTracker, LeavesOtherTextsAlone) {
  EXPECT_FALSE(repeats_after(R"({"a":1,"a)", "b\""));
  EXPECT_FALSE(repeats_after(R"({"a":)", R"("a")"));           // a value
  EXPECT_FALSE(repeats_after(R"({"a":["a",)", R"("a","a")"));  // items
  EXPECT_FALSE(repeats_after(R"({"a":{)", R"("a":1)"));        // of another object
  EXPECT_FALSE(repeats_after(R"([{"a":1},{)", R"("a":1)"));
  EXPECT_FALSE(repeats_after(R"({"a":"x\",\"a)", R"(":1,\"a\":)"));  // within a string
  EXPECT_FALSE(repeats_after(R"({"a":1,"a)", "\\\""));
}

}  // namespace
}  // namespace gemma4
