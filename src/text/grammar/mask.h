// TokenMasks: which tokens a grammar allows next, as a bit mask over the whole vocabulary. The vocabulary is a trie of
// its tokens' bytes. Walking the trie with the pushdown automaton itself would be slow, so each set of automaton states
// becomes one state of a deterministic automaton (DFA, the subset construction), with a table from byte to next state.
// Tables and masks are filled in when they are first needed, and kept.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "text/grammar/grammar.h"
#include "text/grammar/pushdown_automaton.h"

namespace gemma4 {

struct GrammarVocabulary::State {
  struct Node {
    uint8_t byte;
    int32_t token_begin;  // its tokens are tokens[token_begin, the next node's token_begin)
    int32_t end;          // the first node that is not below it
  };
  std::vector<Node> nodes;      // in depth-first order, and a sentinel
  std::vector<int32_t> depths;  // [nodes] a node's depth in bytes; the first bytes of tokens have depth 0
  std::vector<int32_t> tokens;
  std::array<int32_t, kInputsEnd - kQuote> symbols;  // ids, -1 where the vocabulary lacks one
  int vocab_size = 0;
  int longest = 0;  // bytes of the longest token
};

class TokenMasks {
 public:
  using Mask = std::vector<uint32_t>;
  TokenMasks(const GrammarVocabulary::State& vocabulary, const PushdownAutomaton& automaton,
             std::vector<int32_t> end_ids)
      : vocabulary_(vocabulary), automaton_(automaton), end_ids_(std::move(end_ids)) {}

  std::shared_ptr<const Mask> mask(const PushdownAutomaton::States& states);  // any thread may call it

 private:
  struct DfaState {
    PushdownAutomaton::States states;
    std::array<int32_t, 256> next;  // -1: unknown, -2: dead
    std::shared_ptr<const Mask> mask;
  };
  int32_t find(PushdownAutomaton::States states) REQUIRES(mutex_);
  int32_t next(int32_t state, uint8_t byte) REQUIRES(mutex_);
  std::shared_ptr<const Mask> make(int32_t state) REQUIRES(mutex_);

  const GrammarVocabulary::State& vocabulary_;
  const PushdownAutomaton& automaton_;
  std::vector<int32_t> end_ids_;
  Mutex mutex_;
  std::vector<std::unique_ptr<DfaState>> dfa_states_ GUARDED_BY(mutex_);
  std::unordered_map<std::string, int32_t> numbers_ GUARDED_BY(mutex_);  // by PushdownAutomaton::key
  size_t masks_ GUARDED_BY(mutex_) = 0;
};

}  // namespace gemma4
