#include "text/schema/backtracking.h"

#include <gtest/gtest.h>

#include <string>

namespace gemma4 {
namespace {

bool backtracks_to(const std::string& pattern, const std::string& text) {
  WorkBudget budget("test", {.steps = 2'000'000, .bytes = 16 << 20});
  return BacktrackingMatcher(parse_whole_regex(pattern, "test", budget), budget).found_in(text);
}

struct Match {
  const char *pattern, *text;
  bool found;
};

// What ECMA-262 says (22.2.2), beside what an automaton could decide as well.
TEST(BacktrackingMatcher, MatchesAsEcmaScriptDoes) {
  const Match matches[] = {
      {"^(a|b)\\1$", "aa", true},
      {"^(a|b)\\1$", "ab", false},
      {"^(?<q>['\"]).*\\k<q>$", "'it\"'", true},
      {"^(?<q>['\"]).*\\k<q>$", "'it\"", false},
      {"^(?P<x>.)(?P=x)$", "éé", true},
      {"(\\w+) \\1", "so very very good", true},
      {"\\b(\\w+) \\1\\b", "so very verygood", false},
      {"(?i)^(ab)\\1$", "aBAb", true},
      {"(?<=\\$)\\d+", "cost $42", true},
      {"(?<=\\$)\\d+", "cost 42", false},
      {"(?<!\\$)\\b\\d+", "cost $42", false},
      {"(?<!un)happy$", "unhappy", false},
      {"(?<!un)happy$", "happy", true},
      {"(?<=a.*)z", "xaxxz", true},  // of variable length
      {"(?<=^.{2,3})z$", "abz", true},
      {"(?<=^.{2,3})z$", "az", false},
      {"(?<=(\\d+)(\\d+))$", "1053", true},
      {"(?<=\\1(a))b", "aab", true},    // read backwards: the group comes first
      {"(?<=(a)\\1)b", "ab", true},     // and here after the reference, which is empty yet
      {"^(?:(a)|b)*\\1$", "ab", true},  // forgotten at each round
      {"^(?:(a)|b)*\\1$", "aba", false},
      {"^(a)?\\1b$", "b", true},  // took no part: the empty text
      {"^\\1(a)$", "a", true},
      {"^(?!(.+)\\1$).*$", "abab", false},
      {"^(?!(.+)\\1$).*$", "aba", true},
      {"^(?=(a+))\\1b", "aab", true},
      {"^(?=(a+))a*b\\1", "baaabac", false},
      {"(?=(a+))a*b\\1", "baaabac", true},  // the example of 22.2.2.4
      {"^(z)((a+)?(b+)?(c))*$", "zaacbbbcac", true},
      {"^(?:a?){3,5}$", "aaaaaa", false},
      {"^(?:a?){3,5}$", "a", true},
      {"^(?:a*)*$", "aaa", true},
      {"^(a{2,3}?)(a*)\\1$", "aaaa", true},
      {"^((.)(?!.*\\2))*$", "abcd", true},  // no character twice
      {"^((.)(?!.*\\2))*$", "abca", false},
      {"^[^\\d]+(?<=é)$", "café", true},
      {"^(?:(?<x>a)|(?<x>b))\\k<x>$", "bb", true},  // one name in two alternatives
      {"^(?:(?<x>a)|(?<x>b))\\k<x>$", "ba", false},
      {"^(?:(?:(?<x>a)|(?<x>b))\\k<x>)+$", "aabb", true},
      {"(?i:(a))\\1", "Aa", false},  // the reference is not within it
      {"(?i:(a)\\1)", "Aa", true},
      {"", "", true},
      {"(?:)", "x", true},
      {"a|(?<=b)$", "cb", true},
      {"\\B(?<=e)d", "red", true},
  };
  for (const Match& one : matches) {
    EXPECT_EQ(backtracks_to(one.pattern, one.text), one.found) << one.pattern << " in " << one.text;
  }
}

TEST(BacktrackingMatcher, WorkAndMemoryAreBounded) {
  EXPECT_THROW(backtracks_to("^(a*)*\\1b$", std::string(40, 'a')), BudgetError);
  EXPECT_THROW(backtracks_to("^(a|aa)+\\1c$", std::string(60, 'a')), BudgetError);
  EXPECT_THROW(backtracks_to("^(((((((a{0,99}){0,99}){0,99}){0,99}){0,99}){0,99}){0,99})\\1b", std::string(300, 'a')),
               BudgetError);
  EXPECT_TRUE(backtracks_to("^(.)*\\1$", std::string(20'000, 'a')));  // nothing recurses on the text
  EXPECT_THROW(backtracks_to("^(.)*\\1$", std::string(2'000'000, 'a')), BudgetError);
}

TEST(BacktrackingMatcher, ReferencesToNothingAreRefused) {
  for (const char* bad : {"\\1", "(a)\\2", "\\k<x>(a)", "(?P=x)", "(?<=a", "(a)\\k<"}) {
    EXPECT_THROW(backtracks_to(bad, "a"), Error) << bad;
  }
}

// As Python's re (3.11) says of each.
TEST(BacktrackingMatcher, AtomicGroupsKeepWhatTheyTook) {
  const Match matches[] = {
      {"^a++$", "aaa", true},          {"^a++a", "aaa", false},          {"^a*+a$", "a", false},
      {"^a?+a$", "a", false},          {"^a?+a$", "aa", true},           {"^a{1,2}+a$", "aa", false},
      {"^a{1,2}+a$", "aaa", true},     {"^(?>a|ab)c$", "abc", false},    {"^(?>ab|a)c$", "abc", true},
      {"^(?:a|ab)c$", "abc", true},    {"(?>a+)b", "xaab", true},        {"^(?>(a+)|b)\\1$", "aa", false},
      {"^(?>(a)|b)\\1$", "aa", true},  {"^(?>(?>a*)b|a)c$", "ac", true}, {"^(?!(?>a|ab)c)abc$", "abc", true},
      {"(?<=(?>ab|b))c", "abc", true}, {"^(?>.*?,){2}+x", "a,b,x", true}};
  for (const Match& match : matches) {
    EXPECT_EQ(backtracks_to(match.pattern, match.text), match.found) << match.pattern << " in " << match.text;
  }
}

}  // namespace
}  // namespace gemma4
