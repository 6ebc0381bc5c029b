// Tokenizer::State: the data of a Tokenizer, and how it is made from the definitions in the two file formats
// (tokenizer.json, GGUF). Private to the tokenizer's own files.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "text/tokenizer/added_tokens.h"
#include "text/tokenizer/bpe.h"
#include "text/tokenizer/packed_strings.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

struct Replacement {
  std::string from, to;
};

// A vocabulary as read, before it is checked.
struct TokenizerDefinition {
  std::vector<std::pair<std::string, int32_t>> vocabulary;
  std::vector<AddedToken> added;
  std::vector<std::pair<std::string, std::string>> merges;
  std::string unknown;  // the unknown token's name, or empty
  bool byte_fallback = false, fuse_unknown = false;
  bool skip_bad_merges = false;  // otherwise a merge whose operands or result are no tokens is an Error
  std::vector<Replacement> normalizer, decoder;
  bool decode_bytes = false;
};

enum TokenFlags : uint8_t { kTokenSpecial = 1, kTokenControl = 2, kTokenByte = 4, kTokenAdded = 8 };

struct Tokenizer::State {
  explicit State(TokenizerDefinition definition);

  PackedStrings tokens, pieces;  // [vocab]
  StringTable table;             // of tokens
  std::vector<uint8_t> flags;    // [vocab] TokenFlags
  std::array<int32_t, 256> byte_ids;
  int32_t unknown = -1;
  std::vector<Replacement> normalizer;
  AddedTokens raw, normalized;  // matched before and after normalisation
  Bpe bpe;

 private:
  void name_tokens(const TokenizerDefinition& definition);
  void add_tokens(const std::vector<AddedToken>& added);
  std::vector<Bpe::Merge> usable_merges(const TokenizerDefinition& definition) const;
};

std::string replace_all(std::string_view text, const std::vector<Replacement>& replacements);
TokenizerDefinition parse_tokenizer_json(std::string_view json);

}  // namespace gemma4
