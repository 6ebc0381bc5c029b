// Patterns against an independent matcher: sets of positions in the text, with counts run one by one. It shares nothing
// with the automaton, in which states are left out and merged.
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>

#include "base/json.h"
#include "text/data_testing.h"
#include "text/grammar/grammar.h"

namespace gemma4 {
namespace {

using test::demo;

struct Regex {
  enum Type { kCharacter, kSequence, kChoice, kRepeat } type = kSequence;
  std::string characters;  // kCharacter: one of these
  std::vector<Regex> operands;
  int least = 0, most = 0;  // kRepeat

  std::string spell() const {
    std::string out;
    if (type == kCharacter) return characters.size() == 1 ? characters : "[" + characters + "]";
    if (type == kRepeat) {
      return "(" + operands[0].spell() + "){" + std::to_string(least) + "," + std::to_string(most) + "}";
    }
    for (const Regex& operand : operands) {
      if (type == kChoice && !out.empty()) out += '|';
      out += operand.spell();
    }
    return "(" + out + ")";
  }

  std::set<size_t> ends(const std::string& text, const std::set<size_t>& begins) const {
    std::set<size_t> result;
    if (type == kCharacter) {
      for (const size_t at : begins) {
        if (at < text.size() && characters.find(text[at]) != std::string::npos) result.insert(at + 1);
      }
    } else if (type == kSequence) {
      result = begins;
      for (const Regex& operand : operands) result = operand.ends(text, result);
    } else if (type == kChoice) {
      for (const Regex& operand : operands) result.merge(operand.ends(text, begins));
    } else {
      std::set<size_t> now = begins;
      for (int run = 0; run <= most && !now.empty(); ++run) {
        const size_t before = result.size();
        if (run >= least) result.insert(now.begin(), now.end());
        if (run > least && result.size() == before) break;  // further runs add nothing
        now = operands[0].ends(text, now);
      }
    }
    return result;
  }
  bool matches(const std::string& text) const { return ends(text, {0}).contains(text.size()); }
};

Regex random_regex(std::mt19937& random, int depth) {
  Regex regex;
  const unsigned type = depth == 0 ? 0 : random() % 8;
  if (type < 2) {
    regex.type = Regex::kCharacter;
    regex.characters = std::vector<std::string>{"a", "b", "ab", "abc", "c"}[random() % 5];
  } else if (type < 6) {
    regex.type = Regex::kRepeat;
    regex.least = static_cast<int>(random() % 4);
    if (random() % 3 == 0) regex.least = 0;
    regex.most = regex.least + static_cast<int>(random() % 5);
    if (regex.most == 0 || random() % 8 == 0) regex.most += 40;
    regex.operands = {random_regex(random, depth - 1)};
  } else {
    regex.type = type == 6 ? Regex::kSequence : Regex::kChoice;
    for (unsigned i = 0; i < 2 + random() % 2; ++i) regex.operands.push_back(random_regex(random, depth - 1));
  }
  return regex;
}

Grammar grammar_of(const std::string& pattern, bool by_parts = false) {
  static const auto vocabulary = std::make_shared<const GrammarVocabulary>(demo());
  GrammarOptions options{{demo().require("<turn|>")}};
  options.masks_by_parts = by_parts;
  return Grammar::json_schema(vocabulary, nlohmann::json{{"type", "string"}, {"pattern", pattern}}.dump(), options);
}

bool accepts(Grammar grammar, const std::string& text) {
  for (const int32_t id : demo().encode("\"" + text + "\"", false)) {
    if (!grammar.advance(id)) return false;
  }
  return grammar.complete();
}

// Expressions in which states cover each other, touch, or leave gaps.
std::vector<Regex> telling() {
  const auto any = [] { return Regex{Regex::kCharacter, "abc", {}, 0, 0}; };
  const auto a = [] { return Regex{Regex::kCharacter, "a", {}, 0, 0}; };
  const auto repeat = [](Regex body, int least, int most) {
    return Regex{Regex::kRepeat, "", {std::move(body)}, least, most};
  };
  std::vector<Regex> all;
  for (const auto& [least, most] : std::vector<std::pair<int, int>>{{2, 2}, {2, 3}, {3, 5}, {0, 4}, {4, 9}}) {
    all.push_back({Regex::kSequence, "", {repeat(any(), 0, 99), a(), repeat(any(), least, most)}, 0, 0});
    all.push_back(repeat(repeat(repeat(a(), 0, 1), least, most), 2, 3));
    all.push_back(repeat(repeat(any(), least, most), 2, 3));
    all.push_back(repeat({Regex::kSequence, "", {repeat(a(), 0, 2), repeat(any(), least, most)}, 0, 0}, 0, 3));
  }
  return all;
}

TEST(Closure, PatternsMatchWhatAnIndependentMatcherSays) {
  std::mt19937 random(7);
  std::vector<Regex> all = telling();
  for (int i = 0; i < 150; ++i) all.push_back(random_regex(random, 4));
  int matched = 0, compared = 0;
  for (const Regex& regex : all) {
    const std::string pattern = "^" + regex.spell() + "$";
    const Grammar plain = grammar_of(pattern), by_parts = grammar_of(pattern, true);
    for (int i = 0; i < 12; ++i) {
      std::string text;
      const size_t length = random() % (i < 6 ? 6 : 16);
      while (text.size() < length) text += "aabc"[random() % 4];
      const bool expected = regex.matches(text);
      matched += expected;
      ++compared;
      ASSERT_EQ(accepts(plain, text), expected) << pattern << " on " << text;
      ASSERT_EQ(accepts(by_parts, text), expected) << pattern << " by parts on " << text;
    }
  }
  EXPECT_GT(matched, compared / 10);
  EXPECT_LT(matched, compared * 9 / 10);
}

// The kind of expression that took one state for each combination of counts.
TEST(Closure, NestedRepeatsOfWhatMayBeEmptyAreCheap) {
  for (const char* pattern :
       {"^(((((a?){0,60}){0,60}){0,60}){0,60}){0,60}$", "^(((((a?b?){0,60}c?){0,60}d?){0,60}e?){0,60}f?){0,60}$",
        "^((((a?|b?){0,60}){0,60}|c?){0,60}|d?){0,60}$", "^(.{0,100}){0,100}$", "^((a{0,300}b?){0,300}){0,300}$"}) {
    Grammar grammar = grammar_of(pattern);
    EXPECT_TRUE(accepts(grammar, "aaaaaaaaaaaa")) << pattern;
    EXPECT_LT(grammar.budget().steps_used(), 3'000'000u) << pattern;
  }
}

}  // namespace
}  // namespace gemma4
