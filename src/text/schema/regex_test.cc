#include "text/schema/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "text/schema/backtracking.h"
#include "text/schema/string_set.h"

namespace gemma4 {
namespace {

using testing::HasSubstr;

enum Verdict { kRegexGood, kRegexUnsupported, kRegexWrong };

Verdict verdict(const std::string& pattern, std::string* sentence = nullptr) {
  WorkBudget budget("test");
  try {
    parse_whole_regex(pattern, "test", budget);
    return kRegexGood;
  } catch (const UnsupportedRegex& error) {
    if (sentence != nullptr) *sentence = error.what();
    return kRegexUnsupported;
  } catch (const Error& error) {
    if (sentence != nullptr) *sentence = error.what();
    return kRegexWrong;
  }
}

std::string why_wrong(const std::string& pattern) {
  std::string sentence;
  EXPECT_NE(verdict(pattern, &sentence), kRegexGood) << pattern;
  return sentence;
}

// `new RegExp(pattern, "u")` throws a SyntaxError for each (V8 11.3).
TEST(SchemaRegex, RefusesWhatEcmaScriptRefuses) {
  const char* const all[] = {"(a)\\99999999999999999999",
                             "(a)\\2",
                             "\\8",
                             "(?<=a)+b",
                             "(?<!a)*b",
                             "(?=a)+",
                             "(?!a){2}",
                             "^*",
                             "a|$+",
                             "\\b?",
                             "\\B{1,2}",
                             "(?<x>a)(?<x>b)",
                             "(?:(?<x>a)|b)(?<x>c)",
                             "(?<x>(?<x>a))",
                             "(?=(?<x>a))(?<x>b)",
                             "(?<1x>a)",
                             "(?<>a)",
                             "(?<x a>b)",
                             "(?<x",
                             "\\k<x>",
                             "(?)",
                             "(??a)",
                             "\\00",
                             "\\01",
                             "a{2,1}",
                             "a**",
                             "a{1}{2}",
                             "a{,3}",
                             "*",
                             "a|{2}",
                             "\\u{110000}",
                             "[b-a]",
                             "(a",
                             "a)"};
  for (const char* pattern : all) EXPECT_EQ(verdict(pattern), kRegexWrong) << pattern;
  EXPECT_THAT(why_wrong("(a)\\99999999999999999999"), HasSubstr("refers to a group that is not there"));
  EXPECT_THAT(why_wrong("(?<=a)+b"), HasSubstr("repeats an anchor or what looks around ('+')"));
  EXPECT_THAT(why_wrong("(?<x>a)(?<x>b)"), HasSubstr("has two groups with the name x"));
  EXPECT_THAT(why_wrong("a{,3}"), HasSubstr("{0,3} is what it has"));
}

TEST(SchemaRegex, TakesWhatCanBeReadInOneWay) {
  const char* const all[] = {"(?<x>a)|(?<x>b)",  // ECMA-262 2025
                             "(?:(?<x>a)|(?<x>b)|(?<y>c))\\k<x>",
                             "(?i:a)b",
                             "(?s-i:.)",
                             "(?<$x_1>a)",
                             "(?<\xc3\xa9>a)",
                             "(?:^)*",
                             "(?:(?=a))+",
                             "\\cA",
                             "\\ud83d\\ude00",
                             "[\\ud83d\\ude00-\\ud83d\\ude05]",
                             "a{",
                             "}",
                             "]",
                             "\\-",
                             "[\\d-z]",
                             "(?P<x>a)(?P=x)",
                             "\\Aa\\Z",
                             "(?i)a",
                             "(?s)a",
                             "(?is)a",
                             "(?:a{2})*",
                             "(?:a+)?",
                             "a{,x}"};
  for (const char* pattern : all) EXPECT_EQ(verdict(pattern), kRegexGood) << pattern << ": " << why_wrong(pattern);
}

TEST(SchemaRegex, NamesWhatItDoesNotKnow) {
  for (const char* pattern : {"\\p{Nothing}", "(?m:^a)", "(?#x)a", "(?(1)a)", "\\a", "\\Q", "\\h"}) {
    EXPECT_EQ(verdict(pattern), kRegexUnsupported) << pattern;
  }
  EXPECT_THAT(why_wrong("\\h"), HasSubstr("has the escape \\h, which ECMA-262 has not"));
}

TEST(SchemaRegex, FlagsOfAGroupEndWithIt) {
  WorkBudget budget("test");
  const auto takes = [&](const char* pattern, const char* text) {
    const Regex regex = parse_regex(pattern, "test", budget);
    return StringSet::make({{&regex}, {}}, budget)->contains(text);
  };
  EXPECT_TRUE(takes("^(?i:ab)c$", "aBc"));
  EXPECT_FALSE(takes("^(?i:ab)c$", "abC"));
  EXPECT_TRUE(takes("(?i)^a(?-i:b)c$", "AbC"));
  EXPECT_FALSE(takes("(?i)^a(?-i:b)c$", "ABC"));
  EXPECT_TRUE(takes("^(?s:.).$", "\na"));
  EXPECT_FALSE(takes("^(?s:.).$", "\n\n"));
  EXPECT_TRUE(takes("(?s)^.$", "\n"));
  EXPECT_TRUE(takes("^\\cJ$", "\n"));
  EXPECT_TRUE(takes("^[\\ud83d\\ude00]$", "\xf0\x9f\x98\x80"));
  EXPECT_FALSE(takes("^[\\ud83d\\ude00]$", "\xf0\x9f\x98\x81"));
}

}  // namespace
}  // namespace gemma4
