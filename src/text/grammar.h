// Grammar: which tokens may come next, so that the output is what was asked for. Three kinds: any JSON object, JSON
// that a schema describes, and Gemma tool calls (<|tool_call>call:NAME{...}<tool_call|>). A schema becomes a pushdown
// automaton over bytes; a mask is found by walking the vocabulary's trie through it, and is kept for each automaton
// state. End tokens are allowed exactly where the value is complete. A keyword that is not implemented is an Error that
// names it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace gemma4 {

struct GrammarOptions {
  std::vector<int32_t> end_ids;  // tokens that end a turn (generation_config's eos ids)
  bool allow_thinking = false;   // a <|channel>...<channel|> may come first
};

// The tokens that a mask chooses from, arranged by their bytes. Build one for each tokenizer and share it.
class GrammarVocabulary {
 public:
  explicit GrammarVocabulary(const Tokenizer& tokenizer);
  struct State;
  const State& state() const { return *state_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  Tokenizer tokenizer_;
  std::shared_ptr<const State> state_;
};

// One output being written: a compiled grammar (shared) and a place in it. Copy it to look ahead or to roll back.
class Grammar {
 public:
  static Grammar json_object(std::shared_ptr<const GrammarVocabulary> vocabulary, const GrammarOptions& options);
  static Grammar json_schema(std::shared_ptr<const GrammarVocabulary> vocabulary, std::string_view schema,
                             const GrammarOptions& options);
  // `tools` as render_chat takes them; `name`: only that tool, else any of them. parallel: more than one call.
  static Grammar tool_calls(std::shared_ptr<const GrammarVocabulary> vocabulary, std::string_view tools,
                            std::string_view name, bool parallel, const GrammarOptions& options);

  // Bit id % 32 of word id / 32 says whether `id` may come next: [(vocab_size + 31) / 32]. Never all zero until an end
  // token was taken. Valid until the grammar's last copy is gone.
  std::span<const uint32_t> mask() const;
  bool advance(int32_t token);  // false, and nothing changes, where the mask forbids it
  bool complete() const;        // an end token may come
  bool ended() const;           // an end token came

  struct Compiled;

 private:
  struct Place;
  Grammar() = default;
  std::shared_ptr<const Compiled> compiled_;
  std::shared_ptr<const Place> place_;
};

}  // namespace gemma4
