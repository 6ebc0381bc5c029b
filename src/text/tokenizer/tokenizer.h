// Tokenizer: strings to token ids and back, as tokenizer.json says. Byte-pair encoding (BPE) without pre-tokenization,
// byte fallback, and added tokens, which are matched in the raw text first. The rules are those of the `tokenizers`
// library, from which the golden ids come. Every component that a tokenizer.json may name is either implemented or
// refused by name. Ids are never constants: find() returns the id of a token. Immutable after construction; copies are
// cheap; any thread may call it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gemma4 {

// GGUF's token types (ggml-org/ggml docs/gguf.md).
enum class TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// A vocabulary as GGUF stores it.
struct TokenizerArrays {
  std::vector<std::string> tokens;  // [vocab], as in the vocabulary: U+2581 for a space
  std::vector<float> scores;        // [vocab] or empty; byte-pair merging does not use them
  std::vector<int32_t> types;       // [vocab], TokenType
  std::vector<std::string> merges;  // "left right", in order of rank
};

class Tokenizer {
 public:
  static Tokenizer from_json(std::string_view tokenizer_json);  // throws Error
  static Tokenizer from_arrays(const TokenizerArrays& arrays);  // throws Error
  TokenizerArrays to_arrays() const;

  // Ids of `text`; no BOS is added. parse_special: the names of control tokens in the text become those tokens. It is
  // false for untrusted text, in which they stay ordinary text. Throws Error on invalid UTF-8, and what `between`
  // throws, which is called about once for 64 KiB of text.
  std::vector<int32_t> encode(std::string_view text, bool parse_special,
                              const std::function<void()>& between = {}) const;

  // Splits `text` at the names of control tokens. Joined, the segments are the text. Throws Error on invalid UTF-8.
  struct Segment {
    std::string_view text;
    bool control;
  };
  std::vector<Segment> split_control(std::string_view text) const;

  // Text of `ids`. A run of byte tokens that is not valid UTF-8 becomes one U+FFFD for each byte, as `tokenizers` does.
  // skip_special leaves out tokens marked special. Throws Error on an id outside the vocabulary.
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  int vocab_size() const;
  // The bytes of a token: U+2581 is a space, a byte token is its byte, a control token is its name.
  std::string_view piece(int32_t id) const;
  std::string_view token(int32_t id) const;  // as in the vocabulary
  std::optional<int32_t> find(std::string_view token) const;
  int32_t require(std::string_view token) const;  // throws Error if the vocabulary lacks it

  bool is_special(int32_t id) const;  // marked special in the file
  // Control tokens are never text. They are special, or named like a marker of the prompt format (<|x>, <x|>, <|x|>),
  // or reserved (<unused7>).
  bool is_control(int32_t id) const;
  bool is_byte(int32_t id) const;

  struct State;

 private:
  explicit Tokenizer(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  std::shared_ptr<const State> state_;
};

}  // namespace gemma4
