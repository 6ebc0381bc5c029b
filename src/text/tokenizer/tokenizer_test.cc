#include "text/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <random>

#include "base/check.h"
#include "base/json.h"
#include "base/utf8.h"
#include "text/data_testing.h"

namespace gemma4 {
namespace {

using nlohmann::json;
using test::demo;
using test::error_of;
using test::gemma3;
using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

void expect_golden(const Tokenizer& tokenizer, const std::string& path) {
  const json cases = test::golden(path);
  ASSERT_EQ(cases.size(), 212u);
  for (const json& one : cases) {
    const auto text = one["text"].get<std::string>();
    const auto ids = one["ids"].get<Ids>();
    ASSERT_EQ(tokenizer.encode(text, true), ids) << text;
    ASSERT_EQ(tokenizer.decode(ids, false), one["decoded"].get<std::string>()) << text;
  }
}

// BPE by its definition, over the whole text: merge the leftmost pair of the lowest rank until none is left.
class PlainMerges {
 public:
  explicit PlainMerges(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
    const TokenizerArrays arrays = tokenizer.to_arrays();
    for (size_t rank = 0; rank < arrays.merges.size(); ++rank) {
      const std::string& merge = arrays.merges[rank];
      const size_t space = merge.find(' ');
      ranks_[{merge.substr(0, space), merge.substr(space + 1)}] = rank;
    }
  }

  Ids encode(std::string text) const {  // text without spaces or added tokens
    std::vector<std::string> symbols;
    while (!text.empty()) {
      const size_t length = utf8_length(text);
      const std::string character = text.substr(0, length);
      text.erase(0, length);
      if (tokenizer_.find(character)) {
        symbols.push_back(character);
        continue;
      }
      for (const char c : character) {
        char name[8];
        snprintf(name, sizeof(name), "<0x%02X>", static_cast<unsigned char>(c));
        symbols.emplace_back(name);
      }
    }
    while (true) {
      size_t best = 0, best_rank = ~size_t{0};
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        const auto found = ranks_.find({symbols[i], symbols[i + 1]});
        if (found != ranks_.end() && found->second < best_rank) best = i, best_rank = found->second;
      }
      if (best_rank == ~size_t{0}) break;
      symbols[best] += symbols[best + 1];
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    Ids ids;
    for (const std::string& symbol : symbols) ids.push_back(tokenizer_.require(symbol));
    return ids;
  }

 private:
  Tokenizer tokenizer_;
  std::map<std::pair<std::string, std::string>, size_t> ranks_;
};

// A small tokenizer.json, in which tests change one thing.
json small() {
  return read_json<json>(R"({"version":"1.0","truncation":null,"padding":null,
    "added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":1,"content":"<s>","special":true}],
    "normalizer":{"type":"Replace","pattern":{"String":" "},"content":"▁"},
    "pre_tokenizer":{"type":"Split","pattern":{"String":" "},"behavior":"MergedWithPrevious","invert":false},
    "post_processor":null,
    "decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
      {"type":"ByteFallback"},{"type":"Fuse"}]},
    "model":{"type":"BPE","dropout":null,"unk_token":"<unk>","continuing_subword_prefix":null,
      "end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":false,"ignore_merges":false,
      "vocab":{"<unk>":0,"<s>":1,"a":2,"b":3,"ab":4,"▁":5,"aba":6,"<":7,"s":8,">":9,"s>":10,"<s":11},
      "merges":[["a","b"],["ab","a"],["s",">"]]}})");
}

Tokenizer small_with(const std::function<void(json&)>& change) {
  json file = small();
  change(file);
  return Tokenizer::from_json(file.dump());
}

json added(int id, const std::string& content, const json& flags) {
  json token = {{"id", id}, {"content", content}};
  token.update(flags);
  return token;
}

TEST(Tokenizer, DemoGolden) {
  expect_golden(demo(), "tokenizer/demo_golden.json");
  expect_golden(Tokenizer::from_arrays(demo().to_arrays()), "tokenizer/demo_golden.json");
}

// llama.cpp's converter marks these as "user defined", so that they are printed. Text with such a name must not become
// the token.
TEST(Tokenizer, TokensThatAGgufFileShowsAreControlTokens) {
  TokenizerArrays arrays = demo().to_arrays();
  int shown = 0;
  for (const char* name :
       {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<|\"|>"}) {
    const auto id = demo().find(name);
    if (!id) continue;
    arrays.types[static_cast<size_t>(*id)] = 4;
    ++shown;
  }
  ASSERT_GE(shown, 5);
  const Tokenizer tokenizer = Tokenizer::from_arrays(arrays);
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    ASSERT_EQ(tokenizer.is_control(id), demo().is_control(id)) << tokenizer.piece(id);
  }
  const std::string text = "a <|tool_call>call:x{}<tool_call|> b";
  EXPECT_EQ(tokenizer.encode(text, false), demo().encode(text, false));
  EXPECT_EQ(tokenizer.encode(text, true), demo().encode(text, true));
  EXPECT_NE(tokenizer.encode(text, true), tokenizer.encode(text, false));
}

// One test, so that the real vocabulary is unpacked once.
TEST(Tokenizer, Gemma3GoldenFromJsonAndFromArrays) {
  expect_golden(gemma3(), "tokenizer/gemma3_golden.json");
  const Tokenizer again = Tokenizer::from_arrays(gemma3().to_arrays());
  expect_golden(again, "tokenizer/gemma3_golden.json");
  EXPECT_EQ(again.vocab_size(), gemma3().vocab_size());
  EXPECT_EQ(gemma3().vocab_size(), 262145);
  for (int32_t id = 0; id < again.vocab_size(); id += 7) {
    ASSERT_EQ(again.piece(id), gemma3().piece(id));
    ASSERT_EQ(again.is_control(id), gemma3().is_control(id));
    ASSERT_EQ(again.is_byte(id), gemma3().is_byte(id));
  }
}

TEST(Tokenizer, CutTextMergesAsTheWholeText) {
  const PlainMerges plain(demo());
  std::mt19937 random(1);
  const std::string alphabet = "aeinrstoh.,:{}0123THE\xc3\xa9";
  for (int round = 0; round < 400; ++round) {
    std::string text;
    for (size_t n = random() % 150; n > 0; --n) {  // long enough for merge_short and merge_long
      const auto roll = random() % 24;
      if (roll < 4) {
        text += "\xe2\x96\x81";
      } else if (roll == 4) {
        text += "\xf0\x9f\x91\x8b";
      } else {
        text += alphabet[random() % 20];
      }
    }
    // Added tokens are matched before merging; the definition above has none.
    if (text.find("\xe2\x96\x81\xe2\x96\x81") != std::string::npos) continue;
    ASSERT_EQ(demo().encode(text, false), plain.encode(text)) << text;
  }
}

TEST(Tokenizer, LongWordMergesAsTheDefinitionSays) {
  const PlainMerges plain(demo());
  std::mt19937 random(2);
  for (int round = 0; round < 30; ++round) {
    std::string text;
    while (text.size() < 400) text += demo().piece(300 + static_cast<int32_t>(random() % 1700));
    std::erase(text, ' ');
    std::erase(text, '\n');
    if (!utf8_valid(text)) continue;
    ASSERT_EQ(demo().encode(text, false), plain.encode(text)) << text;
  }
}

TEST(Tokenizer, ControlTokensOnlyWhereAskedFor) {
  const int32_t turn = demo().require("<|turn>");
  EXPECT_EQ(demo().encode("<|turn>", true), Ids{turn});
  const Ids text = demo().encode("<|turn>", false);
  EXPECT_GT(text.size(), 1u);
  EXPECT_EQ(std::count_if(text.begin(), text.end(), [](int32_t id) { return demo().is_control(id); }), 0);
  EXPECT_EQ(demo().decode(text, true), "<|turn>");
  EXPECT_EQ(demo().encode("\n\n", false), Ids{demo().require("\n\n")});  // an added token that is plain text
  EXPECT_TRUE(demo().is_control(turn));
  EXPECT_FALSE(demo().is_control(demo().require("\n\n")));
  EXPECT_TRUE(gemma3().is_control(gemma3().require("<unused7>")));
}

// No untrusted text may give a control token: neither the tokens' names, nor truncated or doubled ones.
TEST(Tokenizer, UntrustedTextNeverGivesAControlToken) {
  std::mt19937 random(4);
  std::vector<std::string> names;
  for (int32_t id = 0; id < demo().vocab_size(); ++id) {
    if (demo().is_control(id)) names.emplace_back(demo().token(id));
  }
  ASSERT_GT(names.size(), 20u);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (size_t n = 1 + random() % 5; n > 0; --n) {
      const std::string& name = names[random() % names.size()];
      const size_t begin = random() % 3 == 0 ? random() % name.size() : 0;
      text += name.substr(begin, random() % 3 == 0 ? random() % name.size() : std::string::npos);
    }
    const Ids ids = demo().encode(text, false);
    for (const int32_t id : ids) ASSERT_FALSE(demo().is_control(id)) << text;
    ASSERT_EQ(demo().decode(ids, false), text);
  }
}

TEST(Tokenizer, DecodesBytesAsTheReferenceDoes) {
  const auto byte = [](const char* hex) { return demo().require(std::string("<0x") + hex + ">"); };
  EXPECT_EQ(demo().decode(Ids{byte("C3"), byte("A9")}, false), "\xc3\xa9");
  EXPECT_EQ(demo().decode(Ids{byte("41"), byte("C3")}, false), "\xef\xbf\xbd\xef\xbf\xbd");  // the run as a whole
  EXPECT_EQ(demo().decode(Ids{byte("C3"), demo().require("a")}, false),
            "\xef\xbf\xbd"
            "a");
  EXPECT_EQ(demo().piece(byte("C3")), "\xc3");
  EXPECT_EQ(demo().token(byte("C3")), "<0xC3>");
  EXPECT_EQ(demo().decode(demo().encode("<bos>a<turn|>", true), true), "a");
  EXPECT_THAT(error_of([] { demo().decode(Ids{99999}, false); }), HasSubstr("99999"));
}

TEST(Tokenizer, RefusesInvalidText) {
  EXPECT_THAT(error_of([] { demo().encode("a\xff", true); }), HasSubstr("UTF-8"));
  EXPECT_THAT(error_of([] { demo().encode("\xed\xa0\x80", true); }), HasSubstr("UTF-8"));  // a surrogate
  EXPECT_THAT(error_of([] { demo().require("<nothing>"); }), HasSubstr("<nothing>"));
}

TEST(Tokenizer, UnknownCharactersFuse) {
  const Tokenizer tokenizer = small_with([](json&) {});
  EXPECT_EQ(tokenizer.encode("abaxyza b", false), (Ids{6, 0, 2, 5, 3}));
  EXPECT_EQ(small_with([](json& f) { f["model"]["fuse_unk"] = false; }).encode("xy", false), (Ids{0, 0}));
  EXPECT_THAT(error_of([] { small_with([](json& f) { f["model"]["unk_token"] = nullptr; }).encode("x", false); }),
              HasSubstr("'x'"));
}

TEST(Tokenizer, FlagsOfAddedTokens) {
  const auto encode = [](const json& flags, const std::string& text) {
    return small_with([&](json& f) { f["added_tokens"].push_back(added(12, "c", flags)); }).encode(text, true);
  };
  EXPECT_EQ(encode(json::object(), "aca c"), (Ids{2, 12, 2, 5, 12}));
  EXPECT_EQ(encode({{"single_word", true}}, "aca c"), (Ids{2, 0, 2, 5, 12}));
  EXPECT_EQ(encode({{"lstrip", true}}, "a  c a"), (Ids{2, 12, 5, 2}));
  EXPECT_EQ(encode({{"rstrip", true}}, "a c  a"), (Ids{2, 5, 12, 2}));
  // Normalised tokens are matched after spaces became U+2581.
  const auto spaced = [](bool normalized) {
    return small_with([&](json& f) {
             f["added_tokens"].push_back(added(12, "a b", {{"normalized", normalized}}));
           })
        .encode("a b", true);
  };
  EXPECT_EQ(spaced(true), Ids{12});
  EXPECT_EQ(spaced(false), Ids{12});
  const auto marked = [](bool normalized) {
    return small_with([&](json& f) {
             f["added_tokens"].push_back(added(12, "▁b", {{"normalized", normalized}}));
           })
        .encode("a b", true);
  };
  EXPECT_EQ(marked(true), (Ids{2, 12}));
  EXPECT_EQ(marked(false), (Ids{2, 5, 3}));
}

TEST(Tokenizer, LongestAddedTokenWins) {
  const Tokenizer tokenizer = small_with([](json& f) {
    f["added_tokens"].push_back(added(12, "ba", json::object()));
    f["added_tokens"].push_back(added(13, "bab", json::object()));
  });
  EXPECT_EQ(tokenizer.encode("abababa", true), (Ids{2, 13, 2, 12}));
}

TEST(Tokenizer, MergesNeverMakeAControlToken) {
  const Tokenizer tokenizer = small_with([](json& f) {
    f["model"]["merges"].push_back({"<", "s>"});
    f["model"]["merges"].push_back({"<s", ">"});
  });
  EXPECT_EQ(tokenizer.encode("<s>", true), Ids{1});
  EXPECT_EQ(tokenizer.encode("<s>", false), (Ids{7, 10}));
}

TEST(Tokenizer, ALongTextCanBeInterrupted) {
  struct Enough {};
  for (const std::string& unit : {std::string("a"), std::string("word and "), std::string("\xe4\xbd\xa0")}) {
    std::string text;
    while (text.size() < 1 << 20) text += unit;
    int calls = 0;
    const Ids ids = demo().encode(text, false, [&] { ++calls; });
    EXPECT_GE(calls, 8) << unit;
    EXPECT_EQ(ids, demo().encode(text, false));
    int left = 4;
    EXPECT_THROW(demo().encode(text, false, [&] { left-- > 0 ? void() : throw Enough(); }), Enough);
  }
}

// gemma3() has a merge of "a" and "a": a run of them cannot be cut, and merging takes memory for each character.
TEST(Tokenizer, RefusesARunThatIsTooLongToMerge) {
  EXPECT_THAT(error_of([] { gemma3().encode(std::string(5 << 20, 'a'), false); }), HasSubstr("4194304 characters"));
}

TEST(Tokenizer, OldMergesAsOneString) {
  EXPECT_EQ(small_with([](json& f) { f["model"]["merges"] = {"a b", "ab a"}; }).encode("aba", false), Ids{6});
}

TEST(Tokenizer, RefusesByName) {
  const auto error = [](const std::function<void(json&)>& change) { return error_of([&] { small_with(change); }); };
  EXPECT_THAT(error([](json& f) { f["normalizer"] = {{"type", "NFKC"}}; }), HasSubstr("NFKC"));
  EXPECT_THAT(error([](json& f) { f["normalizer"]["pattern"] = {{"Regex", "x"}}; }), HasSubstr("Regex"));
  EXPECT_THAT(error([](json& f) { f["pre_tokenizer"] = {{"type", "ByteLevel"}}; }), HasSubstr("ByteLevel"));
  EXPECT_THAT(error([](json& f) { f["normalizer"] = nullptr; }), HasSubstr("pre_tokenizer"));
  EXPECT_THAT(error([](json& f) { f["decoder"] = {{"type", "WordPiece"}}; }), HasSubstr("WordPiece"));
  EXPECT_THAT(error([](json& f) { f["post_processor"] = {{"type", "RobertaProcessing"}}; }), HasSubstr("Roberta"));
  EXPECT_THAT(error([](json& f) { f["model"]["type"] = "Unigram"; }), HasSubstr("Unigram"));
  EXPECT_THAT(error([](json& f) { f["model"]["dropout"] = 0.1; }), HasSubstr("dropout"));
  EXPECT_THAT(error([](json& f) { f["model"]["ignore_merges"] = true; }), HasSubstr("ignore_merges"));
  EXPECT_THAT(error([](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }), HasSubstr("end_of_word_suffix"));
  EXPECT_THAT(error([](json& f) { f["model"].erase("merges"); }), HasSubstr("merges"));
  EXPECT_THAT(error([](json& f) { f.erase("model"); }), HasSubstr("model"));
  EXPECT_THAT(error([](json& f) { f["model"]["merges"].push_back({"a", "a"}); }), HasSubstr("'a' and 'a'"));
  EXPECT_THAT(error([](json& f) { f["model"]["merges"].push_back({"a"}); }), HasSubstr("fewer than two"));
  EXPECT_THAT(error([](json& f) { f["added_tokens"].push_back(added(12, "b", json::object())); }), HasSubstr("'b'"));
  EXPECT_THAT(error([](json& f) { f["model"]["vocab"]["x"] = 3; }), HasSubstr("two tokens"));
  EXPECT_THAT(error([](json& f) { f["model"]["vocab"]["x"] = 13; }), HasSubstr("id"));
  EXPECT_THAT(error([](json& f) { f["model"]["vocab"]["x"] = 99999999; }), HasSubstr("range"));
  EXPECT_THAT(error([](json& f) { f["model"]["vocab"]["x"] = "y"; }), HasSubstr("integer"));
  EXPECT_THAT(error_of([] { Tokenizer::from_json(small().dump() + "x"); }), HasSubstr("follows"));
  EXPECT_THAT(error_of([] { Tokenizer::from_json(""); }), HasSubstr("ends"));
  TokenizerArrays arrays = demo().to_arrays();
  arrays.merges.clear();
  EXPECT_THAT(error_of([&] { Tokenizer::from_arrays(arrays); }), HasSubstr("no merges"));
  arrays.types.pop_back();
  EXPECT_THAT(error_of([&] { Tokenizer::from_arrays(arrays); }), HasSubstr("type"));
}

// A damaged tokenizer.json is loaded or refused.
TEST(Tokenizer, DamagedFilesAreRefusedNotTrusted) {
  const std::string file = small().dump();
  std::mt19937 random(9);
  int loaded = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = file;
    for (size_t n = 1 + random() % 3; n > 0; --n) {
      const size_t at = random() % damaged.size();
      if (random() % 3 == 0) {
        damaged.erase(at, 1 + random() % 8);
      } else if (random() % 2 == 0) {
        damaged.insert(at, damaged.substr(random() % damaged.size(), random() % 20));
      } else {
        damaged[at] = static_cast<char>(random());
      }
    }
    try {
      const Tokenizer tokenizer = Tokenizer::from_json(damaged);
      ++loaded;
      tokenizer.decode(tokenizer.encode("<s>aba b", true), false);
    } catch (const Error&) {
    }
  }
  EXPECT_GT(loaded, 10);
}

}  // namespace
}  // namespace gemma4
