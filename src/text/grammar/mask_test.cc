#include "text/grammar/mask.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "base/json.h"
#include "base/slow_build_testing.h"
#include "base/utf8.h"
#include "text/data_testing.h"
#include "text/grammar/schema.h"

namespace gemma4 {
namespace {

using test::demo;
using test::gemma3_json;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// Gemma's own vocabulary: 262,144 tokens.
const Grammar::Vocabulary& large() {
  static const Tokenizer tokenizer = Tokenizer::from_json(gemma3_json());
  static const auto instance = std::make_shared<const GrammarVocabulary>(tokenizer);
  return instance;
}

GrammarOptions options(const Grammar::Vocabulary& vocabulary) { return {{vocabulary->tokenizer().require("<eos>")}}; }

Grammar of_pattern(const std::string& pattern, GrammarOptions with) {
  return Grammar::json_schema(large(), nlohmann::json{{"type", "string"}, {"pattern", pattern}}.dump(), with);
}

// Some token that the mask allows, from a random place on.
int32_t allowed_token(std::span<const uint32_t> mask, std::mt19937& random) {
  for (size_t i = 0, word = random() % mask.size(); i < mask.size(); ++i, word = (word + 1) % mask.size()) {
    if (mask[word] != 0) return static_cast<int32_t>(word * 32) + __builtin_ctz(mask[word]);
  }
  return -1;
}

// By the characters of each token that needs no escape.
TEST(TokenMasks, AllowWhatTheTokensOwnCharactersSay) {
  const Tokenizer& tokenizer = large()->tokenizer();
  Grammar no_x = of_pattern("^[^x]*$", options(large())), few = of_pattern("^.{0,7}$", options(large()));
  ASSERT_TRUE(no_x.advance(tokenizer.require("\"")) && few.advance(tokenizer.require("\"")));
  const auto allows = [](const Grammar& grammar, int32_t id) {
    return (grammar.mask()[id / 32] >> (id % 32) & 1) != 0;
  };
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string_view piece = tokenizer.piece(id);
    const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\'; };
    if (tokenizer.is_control(id) || piece.empty() || std::any_of(piece.begin(), piece.end(), control)) continue;
    if (!utf8_valid(piece) || piece.find("\xe2\x80") != std::string_view::npos) continue;
    const auto begins = [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; };
    ASSERT_EQ(allows(no_x, id), piece.find('x') == std::string_view::npos) << piece;
    ASSERT_EQ(allows(few, id), std::count_if(piece.begin(), piece.end(), begins) <= 7) << piece;
  }
}

TEST(TokenMasks, AreTheSameMadeByParts) {
  const Tokenizer& tokenizer = large()->tokenizer();
  std::mt19937 random(3);
  for (const char* pattern : {"^.*[aeiou].{3,5}$", "^.{0,7}x?$", "^(.*a.{0,30}|.*b.{2})$", "^[^x]*$",
                              "^[^\\s@]{1,64}@[^\\s@]+$", "^[0-9a-v]{20}$"}) {
    GrammarOptions by_parts = options(large());
    by_parts.masks_by_parts = true;
    Grammar one = of_pattern(pattern, options(large())), other = of_pattern(pattern, by_parts);
    for (int step = 0; step < 4 && !one.ended(); ++step) {
      const auto mask = one.mask(), parts = other.mask();
      ASSERT_TRUE(std::equal(mask.begin(), mask.end(), parts.begin(), parts.end())) << pattern << " at " << step;
      const int32_t id = step == 0 ? tokenizer.require("\"") : allowed_token(mask, random);
      ASSERT_TRUE(one.advance(id) && other.advance(id)) << pattern;
    }
  }
}

nlohmann::ordered_json lengths(unsigned least, unsigned most) { return {{"minLength", least}, {"maxLength", most}}; }

nlohmann::ordered_json pattern_schema(const char* pattern, unsigned least = 0, unsigned most = 0) {
  nlohmann::ordered_json schema = {{"type", "string"}, {"pattern", pattern}};
  if (most > 0) schema.update(lengths(least, most));
  return schema;
}

// Schemas whose strings take most of the vocabulary, in many ways.
std::vector<nlohmann::ordered_json> wide_schemas() {
  std::vector<nlohmann::ordered_json> all;
  for (const char* pattern : {"^[^\\s@\"]{1,64}@[^\\s@]{1,255}$", "^[cC][^\\s-]{8,}$", "^[0-9a-vA-V]{20}$", "^[^A-Z]*$",
                              "^[a-z0-9]+$", "^(\\p{Extended_Pictographic}|\\p{Emoji_Component})+$", "^[\\w\\s]{3,9}$",
                              "^([a-f]{2}:){0,5}[a-f]{2}$", "^(a|b|[c-z])*[0-9]{2}$", "^[\\u4e00-\\u9fff]{1,12}$"}) {
    all.push_back(pattern_schema(pattern));
  }
  all.push_back(pattern_schema("^[a-z]+( [a-z]+)*$", 3, 12));
  all.push_back(pattern_schema("^ab.*", 3, 30));
  all.push_back(pattern_schema("", 2, 20));
  for (const char* format : {"email", "uri", "hostname"}) all.push_back({{"type", "string"}, {"format", format}});
  all.push_back(read_json<nlohmann::ordered_json>(
      R"({"type":"object","properties":{"a":{"type":"string"}},"additionalProperties":{"type":"number"}})"));
  return all;
}

// Classes that take a part of the characters under many first bytes.
constexpr const char* kUnicodePatterns[] = {"^\\p{L}{3,40}$",
                                            "^\\p{Lu}{2,9}$",
                                            "^\\P{L}{3,40}$",
                                            "^[\\p{L}\\p{N}_-]{1,40}$",
                                            "^\\p{Lu}\\p{Ll}+( \\p{Lu}\\p{Ll}+){0,3}$",
                                            "^(\\p{L}{1,5}|\\p{N}{2,9}-)*$",
                                            "^(?!ab)\\p{L}{2,6}$",
                                            "^(\\p{L}{2}|[a-z\\u00d7\\u00e9\\u0905\\u3042-\\u309c]{1,3}x)*$",
                                            "^[\\u00d7\\u0589-\\u064b\\u3099\\u4dc0]{0,4}$",
                                            "^\\p{Script=Greek}{1,5}$"};

constexpr int kTried = kSlowBuild ? 997 : 97;          // one token of so many
constexpr int kTokensOfAnswer = kSlowBuild ? 10 : 40;  // for which masks are made

// The reference: a token may come where its bytes may, one after another.
TEST(TokenMasks, AreWhatTheBytesOfTokensSay) {
  const Tokenizer& tokenizer = large()->tokenizer();
  std::mt19937 random(5);
  WorkBudget unlimited("the test");
  std::vector<nlohmann::ordered_json> schemas = wide_schemas();
  for (const char* pattern :
       {"^\\p{L}+( \\p{L}+){0,3}$", "^.{0,7}x?$", "^[^\\x00-\\x1f]{2,6}$", "^[^\\u2014]{0,40}$"}) {
    schemas.push_back(pattern_schema(pattern));
  }
  for (const char* pattern : kUnicodePatterns) schemas.push_back(pattern_schema(pattern));
  for (const nlohmann::ordered_json& schema : schemas) {
    for (const Syntax syntax : {Syntax::kJson, Syntax::kGemma}) {
      PushdownAutomaton automaton(unlimited);
      SchemaGrammar rules(automaton, syntax, schema);
      const int rule = rules.rule(schema, "#");
      automaton.check(rule);
      TokenMasks masks(large()->state(), automaton, {}, unlimited);
      PushdownAutomaton::States states = automaton.start(rule);
      for (int step = 0; step < 8 && !states.all.empty(); ++step) {
        const auto mask = masks.mask(states);
        for (auto id = static_cast<int32_t>(random() % kTried); id < tokenizer.vocab_size(); id += kTried) {
          if (tokenizer.is_control(id) || tokenizer.piece(id).empty()) continue;
          PushdownAutomaton::States after = states;
          for (const char byte : tokenizer.piece(id)) {
            after = automaton.advance(after, static_cast<unsigned char>(byte));
            if (after.dead()) break;
          }
          const bool allowed = ((*mask)[static_cast<size_t>(id) / 32] >> (id % 32) & 1) != 0;
          ASSERT_EQ(allowed, !after.dead()) << schema << " at " << step << ": " << tokenizer.piece(id);
        }
        const int32_t id = allowed_token(*mask, random);
        if (id < 0) break;
        if (tokenizer.is_control(id)) {
          states = automaton.advance(states, kQuote);
          continue;
        }
        for (const char byte : tokenizer.piece(id)) {
          states = automaton.advance(states, static_cast<unsigned char>(byte));
        }
      }
    }
  }
}

// A step is about 10 ns: a mask takes less than a millisecond, also where most tokens may come.
TEST(TokenMasks, MasksOfMostTokensAreCheap) {
  std::mt19937 random(1);
  for (const nlohmann::ordered_json& schema : wide_schemas()) {
    Grammar grammar = Grammar::json_schema(large(), schema.dump(), options(large()));
    uint64_t most = 0;
    grammar.mask();
    for (int i = 0; i < kTokensOfAnswer && !grammar.ended(); ++i) {
      grammar.advance(allowed_token(grammar.mask(), random));
      const uint64_t before = grammar.budget().steps_used();
      grammar.mask();
      most = std::max(most, grammar.budget().steps_used() - before);
    }
    EXPECT_LT(most, 100'000u) << schema;
  }
}

// The bytes of their characters are walked once, and not again for each count of a loop.
TEST(TokenMasks, MasksNearTheLimitsOfUnicodeClassesAreCheap) {
  for (const char* pattern : {"^\\p{L}{3,40}$", "^\\P{L}{3,40}$", "^[\\p{L}\\p{N}_-]{1,40}$"}) {
    std::mt19937 random(1);
    Grammar grammar = Grammar::json_schema(large(), pattern_schema(pattern).dump(), options(large()));
    std::vector<uint64_t> steps;
    for (int answer = 0; answer < 4; ++answer) {
      grammar.restart();
      for (int i = 0; i < kTokensOfAnswer && !grammar.ended(); ++i) {
        const uint64_t before = grammar.budget().steps_used();
        grammar.mask();
        steps.push_back(grammar.budget().steps_used() - before);
        grammar.advance(allowed_token(grammar.mask(), random));
      }
    }
    std::sort(steps.rbegin(), steps.rend());
    ASSERT_GT(steps.size(), 20u);
    EXPECT_LT(steps[0], 300'000u) << pattern;  // the first within the string
    EXPECT_LT(steps[2], 100'000u) << pattern;
  }
}

TEST(TokenMasks, DearPatternsWorkWithinTheBudget) {
  std::mt19937 random(1);
  for (const char* pattern : {"^.*[aeiou].{15,20}$", "^(.{0,100}){0,100}$", "^.*[a-m].{0,3000}$",
                              "^(.*a.{0,300}|.*b.{0,300}|.*c.{0,300}|.*d.{0,300})$", "^.*a.{200}$",
                              "^.*a....................$", "^(\\w+\\s?){1,50}$", "^.{70,90}$"}) {
    Grammar grammar = of_pattern(pattern, options(large()));
    for (int i = 0; i < 30 && !grammar.ended(); ++i) grammar.advance(allowed_token(grammar.mask(), random));
    EXPECT_LT(grammar.budget().steps_used(), 30'000'000u) << pattern;  // about 0.3 s of a core
    EXPECT_LT(grammar.budget().bytes_held(), 64u << 20) << pattern;
  }
}

TEST(TokenMasks, PastTheBudgetMasksFailAndTheObjectStaysAsItWas) {
  GrammarOptions small = options(large());
  small.budget = std::make_shared<WorkBudget>("the schema", WorkLimits{.steps = 30'000});
  Grammar grammar = of_pattern("^[a-z]*[aeiou][a-z]{15,20}$", small);
  const auto take_a_mask = [&] { grammar.mask(); };
  const int32_t quote = large()->tokenizer().require("\"");
  EXPECT_TRUE(grammar.advance(quote));
  small.budget->charge(kGrammarStepsPerToken);  // what the token earned
  EXPECT_THAT(take_a_mask, ThrowsMessage<BudgetError>(HasSubstr("more work than one request may take")));
  EXPECT_THROW(grammar.advance(quote), BudgetError);
  EXPECT_FALSE(grammar.ended());
  Grammar copy = grammar;
  EXPECT_THROW(copy.mask(), BudgetError);
}

TEST(TokenMasks, MemoryIsBounded) {
  GrammarOptions small = options(large());
  small.budget = std::make_shared<WorkBudget>("the schema", WorkLimits{.bytes = 1 << 20});
  Grammar grammar = of_pattern("^.*a.{200}$", small);
  const auto follow = [&] {
    std::mt19937 random(1);
    for (int i = 0; i < 100; ++i) grammar.advance(allowed_token(grammar.mask(), random));
  };
  EXPECT_THAT(follow, ThrowsMessage<BudgetError>(HasSubstr("more memory than one request may take")));
  EXPECT_LE(small.budget->bytes_held(), 1u << 20);
  grammar = of_pattern("^a$", options(large()));
  EXPECT_EQ(small.budget->bytes_held(), 0u);
}

// Whether a mask that had begun ended because another thread cancelled it. No two lengths have a pattern in common, so
// that no mask is known from before.
bool cancel_ends_a_mask(int length) {
  GrammarOptions dear = options(large());
  dear.budget = std::make_shared<WorkBudget>("the schema");
  Grammar grammar = of_pattern("^.*[aeiou].{10," + std::to_string(length) + "}$", dear);
  if (!grammar.advance(large()->tokenizer().require("\""))) return false;
  const uint64_t before = dear.budget->steps_used();
  std::atomic<bool> over = false;
  std::thread other([&] {
    while (!over && dear.budget->steps_used() == before) std::this_thread::sleep_for(std::chrono::microseconds(100));
    dear.budget->cancel();
  });
  bool ended = false;
  try {
    grammar.mask();
  } catch (const CancelledError&) {
    ended = true;
  }
  over = true;
  other.join();
  return ended;
}

// The other thread may come too late where cores are few; a mask that cannot be cancelled never ends early.
TEST(TokenMasks, CancellingReachesMasksThatAreBeingMade) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  bool ended = false;
  for (int length = 20; !ended && std::chrono::steady_clock::now() < deadline; ++length) {
    ended = cancel_ends_a_mask(length);
  }
  EXPECT_TRUE(ended);
}

}  // namespace
}  // namespace gemma4
