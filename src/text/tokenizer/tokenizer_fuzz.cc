// Fuzz targets: a tokenizer.json, which must be read or refused, and a text, trusted or not, which must be decoded from
// its ids unchanged (but U+2581 as a space).
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/mutate_testing.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {
namespace {

constexpr std::string_view kFile = R"({"added_tokens":[{"id":0,"content":"<unk>","special":true},
  {"id":1,"content":"<|x>","special":true},{"id":2,"content":"\n\n","special":false}],
  "normalizer":{"type":"Replace","pattern":{"String":" "},"content":"▁"},
  "decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
  {"type":"ByteFallback"},{"type":"Fuse"}]},
  "model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{"a":3,"b":4,"ab":5,"▁":6,
  "▁a":7,"aba":8,"é":9,"aé":10,"\n":11,"<":12,"|":13,"<|":14)";
constexpr std::string_view kMerges = R"(},"merges":[["a","b"],["▁","a"],["ab","a"],["a","é"],["<","|"]]}})";

std::string file() {
  std::string text(kFile);
  for (int byte = 0; byte < 256; ++byte) {
    char entry[24];
    snprintf(entry, sizeof(entry), ",\"<0x%02X>\":%d", static_cast<unsigned>(byte), 15 + byte);
    text += entry;
  }
  return text.append(kMerges);
}

std::vector<std::string> json_seeds() {
  std::string small(kFile);
  return {file(), small.append(kMerges)};
}

void run_json(const std::string& input) {
  const Tokenizer tokenizer = Tokenizer::from_json(input);
  tokenizer.decode(tokenizer.encode("ab aba\n\n<|x>\xc3\xa9", true), false);
  const Tokenizer again = Tokenizer::from_arrays(tokenizer.to_arrays());
  again.encode("ab aba\n\n<|x>\xc3\xa9", false);
}

std::vector<std::string> text_seeds() {
  return {"ab aba\n\n<|x>\xc3\xa9 a\xc3\xa9\xf0\x9f\x91\x8b<|<|x>>\xe2\x96\x81",
          std::string(200, 'a') + std::string(99, 'b')};
}

void run_text(const std::string& input) {
  static const Tokenizer tokenizer = Tokenizer::from_json(file());
  std::string expected;
  for (size_t at = 0; at < input.size();) {
    const bool mark = std::string_view(input).substr(at).starts_with("\xe2\x96\x81");
    expected += mark ? ' ' : input[at];
    at += mark ? 3 : 1;
  }
  for (const bool parse_special : {false, true}) {
    const auto ids = tokenizer.encode(input, parse_special);
    CHECK(tokenizer.decode(ids, false) == expected);
    for (const int32_t id : ids) CHECK(parse_special || !tokenizer.is_control(id));
  }
}

const RegisterFuzz kJson({"tokenizer", json_seeds, run_json, {"\"special\":true", "[\"a\",\"b\"]", "\\ud83d", "null"}});
const RegisterFuzz kText({"text", text_seeds, run_text, {"<|x>", "\n\n", "\xe2\x96\x81", "\xf0\x9f"}});

}  // namespace
}  // namespace gemma4
