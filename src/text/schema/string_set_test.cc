#include "text/schema/string_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <regex>

#include "text/data_testing.h"

namespace gemma4 {
namespace {

using test::error_of;

struct StringSetOf {
  explicit StringSetOf(const std::vector<std::string>& found, const std::vector<std::string>& not_found = {},
                       uint32_t least = 0, uint32_t most = kNoLimit) {
    for (const std::string& one : found) regexes.push_back(parse_regex(one, "test", budget));
    for (const std::string& one : not_found) regexes.push_back(parse_regex(one, "test", budget));
    StringSet::Terms terms{{}, {}, least, most};
    for (size_t i = 0; i < regexes.size(); ++i) {
      (i < found.size() ? terms.found : terms.not_found).push_back(&regexes[i]);
    }
    set = StringSet::make(terms, budget);
  }

  // By the nondeterministic automaton and by the DFA, which must agree.
  bool contains(const std::string& text) {
    if (set == nullptr) {
      ADD_FAILURE() << "too large";
      return false;
    }
    const bool result = set->contains(text);
    if (!dfa) dfa = set->dfa(5000);
    EXPECT_TRUE(dfa);
    size_t state = 0;
    bool alive = !dfa->states.empty();
    for (size_t i = 0; alive && i < text.size(); ++i) {  // ASCII only
      alive = false;
      for (const auto& [ranges, to] : dfa->states[state].next) {
        for (const auto& [first, last] : ranges) {
          if (static_cast<unsigned char>(text[i]) < first || static_cast<unsigned char>(text[i]) > last) continue;
          state = static_cast<size_t>(to);
          alive = true;
        }
        if (alive) break;
      }
    }
    EXPECT_EQ(alive && dfa->states[state].accepts, result) << text;
    return result;
  }

  WorkBudget budget{"test"};
  std::vector<Regex> regexes;
  std::unique_ptr<StringSet> set;
  std::optional<StringSet::Dfa> dfa;
};

// The definition: the standard library's ECMAScript expressions, on random texts.
TEST(StringSet, AgreesWithTheStandardLibrary) {
  const char* patterns[] = {"^(?!\\.)(?!.*\\.\\.)[a.]*[ab]@(a[ab-]*\\.)*b+$",
                            "^(?=.{2,4}$)[ab]+(?:-[ab]+)*$",
                            "(?=a)b|ab",
                            "^(?:(?!ab)[ab.])*$",
                            "\\bab\\b",
                            "a\\Bb",
                            "^$|^(?:ab){2}$",
                            "^(?!^[-.]*$)-?a*\\.?a*$",
                            "(^a|b$)",
                            "^a(?=b|-)[-b]a(?!b)",
                            "^(?!a)",
                            "^(a(?=b)b|b(?!b))+$"};
  std::mt19937 random(3);
  for (const char* pattern : patterns) {
    StringSetOf set({pattern});
    const std::regex expected(pattern);
    int matched = 0;
    for (int i = 0; i < 3000; ++i) {
      std::string text;
      for (unsigned length = random() % 8; text.size() < length;) text += "aab.-@"[random() % 6];
      const bool matches = std::regex_search(text, expected);
      ASSERT_EQ(set.contains(text), matches) << pattern << " on " << text;
      matched += matches;
    }
    EXPECT_GT(matched, 0) << pattern;
    EXPECT_LT(matched, 3000) << pattern;
  }
}

TEST(StringSet, SeveralConditionsHoldAtOnce) {
  StringSetOf set({"^[ab]+$", "a.*b"}, {"bb", "^ab$"}, 2, 5);
  EXPECT_TRUE(set.contains("aab"));
  EXPECT_TRUE(set.contains("ababa"));
  EXPECT_FALSE(set.contains("ab"));      // not_found
  EXPECT_FALSE(set.contains("abb"));     // not_found
  EXPECT_FALSE(set.contains("ba"));      // the second
  EXPECT_FALSE(set.contains("ababab"));  // too long
  EXPECT_TRUE(StringSetOf({"^a$", "^b$"}).set->dfa(100)->states.empty());
}

TEST(StringSet, CodePointsOutsideAsciiAreOneCharacter) {
  StringSetOf set({"^[^a]{2}$"});
  EXPECT_TRUE(set.set->contains("\xc3\xa9\xf0\x9f\x98\x80"));
  EXPECT_FALSE(set.set->contains("\xc3\xa9"));
  EXPECT_FALSE(set.set->contains("\xc3"));
  EXPECT_TRUE(StringSetOf({"^\\p{Lu}\\p{Ll}+$"}).set->contains("\xc3\x89t\xc3\xa9"));
  EXPECT_FALSE(StringSetOf({"^\\p{Lu}+$"}).set->contains("\xc3\xa9"));
}

TEST(StringSet, WhatTakesTooMuchIsSaid) {
  EXPECT_EQ(StringSetOf({"^(((a{60}){60}){60}){60}$"}).set, nullptr);
  EXPECT_FALSE(StringSetOf({"^.*a.{20}$"}).set->dfa(2000));
  EXPECT_EQ(StringSetOf({"^(?=a)", "^(?=b)c"}).set, nullptr);
  WorkBudget budget("test");
  for (const char* pattern : {"(a)\\1", "(?<=a)b", "(?<!a)b", "\\p{Nothing}", "(?m)a"}) {
    EXPECT_THROW(parse_regex(pattern, "test", budget), UnsupportedRegex) << pattern;
  }
  EXPECT_NE(error_of([&] { parse_regex(std::string(5000, '('), "test", budget); }), "");
}

}  // namespace
}  // namespace gemma4
