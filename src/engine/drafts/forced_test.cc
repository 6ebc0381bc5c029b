#include "engine/drafts/forced.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/models_testing.h"
#include "text/grammar/grammar.h"

namespace gemma4 {
namespace {

const Tokenizer& demo_words() {
  static const Tokenizer instance = Tokenizer::from_json(read_file(std::string(kDemo) + "/tokenizer.json"));
  return instance;
}

std::vector<uint32_t> mask_of(const std::vector<std::string>& tokens) {
  std::vector<uint32_t> mask((static_cast<size_t>(demo_words().vocab_size()) + 31) / 32);
  for (const std::string& token : tokens) {
    const auto id = static_cast<size_t>(demo_words().require(token));
    mask[id / 32] |= 1u << id % 32;
  }
  return mask;
}

int32_t forced(const std::vector<std::string>& tokens) { return forced_token(demo_words(), mask_of(tokens)); }

TEST(ForcedToken, IsTheOnlyOneOrTheLongestOfOneText) {
  const auto id = [](const char* token) { return demo_words().require(token); };
  EXPECT_EQ(forced({"e"}), id("e"));
  EXPECT_EQ(forced({"<turn|>"}), id("<turn|>"));
  EXPECT_EQ(forced({"<0x65>", "e"}), id("e")) << "not the byte";
  EXPECT_EQ(forced({"e", "er"}), id("er"));
  EXPECT_EQ(forced({"e", "r"}), -1) << "two texts";
  EXPECT_EQ(forced({"e", "<turn|>"}), -1) << "the answer may end";
  EXPECT_EQ(forced({}), -1);
}

TEST(ForcedToken, ManyChoicesAreNotLookedAt) {
  std::vector<uint32_t> mask(8, 0xff);  // 64 tokens of more than one text
  EXPECT_EQ(forced_token(demo_words(), mask), -1);
  mask.assign(1000, 0xffffffff);
  EXPECT_EQ(forced_token(demo_words(), mask), -1);
}

// An answer with one possible text is forced from its first token to its last.
TEST(ForcedToken, SpellsAConstant) {
  GrammarOptions options;
  options.end_ids = {demo_words().require("<turn|>")};
  const auto vocabulary = std::make_shared<const GrammarVocabulary>(demo_words());
  Grammar grammar = Grammar::json_schema(vocabulary, R"({"const": "orange squares and red circles"})", options);
  std::string text;
  while (!grammar.ended() && text.size() < 100) {
    const int32_t token = forced_token(demo_words(), grammar.mask());
    if (token < 0) break;
    ASSERT_TRUE(grammar.advance(token));
    if (!grammar.ended()) text += demo_words().piece(token);
  }
  EXPECT_NE(text.find("range squares and red circles\""), std::string::npos) << text;
}

}  // namespace
}  // namespace gemma4
