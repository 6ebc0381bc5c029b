// MaskMaker: which tokens a set of threads can read, for a whole vocabulary at once. The vocabulary is a trie over its
// tokens' bytes; walking it through the automaton would be slow thread by thread, so threads become numbered states
// with tables from byte to state, filled in when first needed, and every state's mask is kept.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/grammar/grammar.h"
#include "text/grammar/pushdown_automaton.h"

namespace gemma4 {

struct GrammarVocabulary::State {
  struct Node {
    uint8_t byte;
    int32_t token_begin;  // its tokens are tokens[token_begin, the next node's token_begin)
    int32_t end;          // the first node that is not below it
  };
  std::vector<Node> nodes;      // in the order in which a walk meets them; one more at the end
  std::vector<int32_t> depths;  // [nodes] bytes above a node
  std::vector<int32_t> tokens;
  std::array<int32_t, kInputsEnd - kQuote> symbols;  // ids, -1 where the vocabulary lacks one
  int vocab_size = 0;
  int longest = 0;  // bytes of the longest token
};

class MaskMaker {
 public:
  using Mask = std::vector<uint32_t>;
  MaskMaker(const GrammarVocabulary::State& vocabulary, const Automaton& automaton, std::vector<int32_t> end_ids)
      : vocabulary_(vocabulary), automaton_(automaton), end_ids_(std::move(end_ids)) {}

  std::shared_ptr<const Mask> mask(const Automaton::Threads& threads);  // any thread may call it

 private:
  struct State {
    Automaton::Threads threads;
    std::array<int32_t, 256> next;  // -1: unknown, -2: dead
    std::shared_ptr<const Mask> mask;
  };
  int32_t find(Automaton::Threads threads);
  int32_t next(int32_t state, uint8_t byte);
  std::shared_ptr<const Mask> make(int32_t state);

  const GrammarVocabulary::State& vocabulary_;
  const Automaton& automaton_;
  std::vector<int32_t> end_ids_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<State>> states_;
  std::unordered_map<std::string, int32_t> numbers_;  // by Automaton::key
  size_t masks_ = 0;
};

}  // namespace gemma4
