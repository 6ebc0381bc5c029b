#include "text/tokenizer/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "base/utf8.h"
#include "text/data_testing.h"

namespace gemma4 {
namespace {

using test::demo;

std::string stream(const std::vector<int32_t>& ids, std::vector<std::string> stops = {}) {
  Detokenizer tokens(demo(), std::move(stops));
  std::string text;
  for (const int32_t id : ids) {
    const std::string ready = tokens.push(id);
    EXPECT_TRUE(utf8_valid(ready));
    text += ready;
  }
  return text + tokens.finish();
}

TEST(Detokenizer, JoinedTextsAreTheWholeText) {
  for (const auto& one : test::golden("tokenizer/demo_golden.json")) {
    const auto ids = demo().encode(one["text"].get<std::string>(), false);
    EXPECT_EQ(stream(ids), demo().decode(ids, false));
  }
}

TEST(Detokenizer, ShowsACharacterWhenItsLastByteArrives) {
  Detokenizer tokens(demo());
  const auto byte = [](const char* hex) { return demo().require(std::string("<0x") + hex + ">"); };
  EXPECT_EQ(tokens.push(byte("F0")), "");
  EXPECT_EQ(tokens.push(byte("9F")), "");
  EXPECT_EQ(tokens.push(byte("91")), "");
  EXPECT_EQ(tokens.push(byte("8B")), "\xf0\x9f\x91\x8b");
  EXPECT_EQ(tokens.push(byte("F0")), "");
  EXPECT_EQ(tokens.push(demo().require("a")),
            "\xef\xbf\xbd"
            "a");  // it can no longer complete
  EXPECT_EQ(tokens.push(byte("C3")), "");
  EXPECT_EQ(tokens.finish(), "\xef\xbf\xbd");
}

TEST(Detokenizer, NeverShowsAControlToken) {
  std::vector<int32_t> all;
  std::string expected;
  for (int32_t id = 0; id < demo().vocab_size(); ++id) {
    if (demo().is_byte(id)) continue;
    all.push_back(id);
    if (!demo().is_control(id)) expected += demo().piece(id);
  }
  EXPECT_EQ(stream(all), expected);
}

TEST(StopFilter, HoldsBackWhatMayComplete) {
  StopFilter filter({"END", "", "\n\n"});
  EXPECT_EQ(filter.push("abE"), "ab");
  EXPECT_EQ(filter.push("Nx"), "ENx");
  EXPECT_EQ(filter.push("\n"), "");
  EXPECT_EQ(filter.push("y"), "\ny");
  EXPECT_EQ(filter.push("zEND of it"), "z");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.stop(), "END");
  EXPECT_EQ(filter.push("more"), "");
  EXPECT_EQ(filter.finish(), "");
}

TEST(StopFilter, GivesBackWhatDidNotComplete) {
  StopFilter filter({"END"});
  EXPECT_EQ(filter.push("EN"), "");
  EXPECT_EQ(filter.finish(), "EN");
}

// The text is cut at the stop string that completes first, however the text is split.
TEST(StopFilter, SplittingDoesNotMatter) {
  std::mt19937 random(7);
  for (int round = 0; round < 3000; ++round) {
    const auto letters = [&](int most) {
      std::string text;
      for (int n = static_cast<int>(random() % (most + 1)); n > 0; --n) text += static_cast<char>('a' + random() % 2);
      return text;
    };
    const std::string text = letters(24);
    std::vector<std::string> stops;
    for (int n = static_cast<int>(random() % 4); n > 0; --n) stops.push_back(letters(5));
    std::string expected = text;  // found by trying every end
    bool found = false;
    for (size_t end = 1; end <= text.size() && !found; ++end) {
      size_t cut = text.size();
      for (const std::string& stop : stops) {
        if (stop.empty() || !std::string_view(text).substr(0, end).ends_with(stop)) continue;
        cut = std::min(cut, end - stop.size());
        found = true;
      }
      if (found) expected = text.substr(0, cut);
    }
    StopFilter filter(stops);
    std::string shown;
    for (size_t at = 0; at < text.size();) {
      const size_t length = 1 + random() % 5;
      shown += filter.push(std::string_view(text).substr(at, length));
      ASSERT_TRUE(expected.starts_with(shown));
      at += length;
    }
    shown += filter.finish();
    ASSERT_EQ(shown, expected) << text;
    ASSERT_EQ(filter.stopped(), found);
  }
}

}  // namespace
}  // namespace gemma4
