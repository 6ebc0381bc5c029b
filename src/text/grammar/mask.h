// TokenMasks: which tokens a grammar allows next, as a bit mask over the whole vocabulary. The vocabulary is a trie of
// its tokens' bytes. Walking the trie with the pushdown automaton itself would be slow, so each set of automaton states
// becomes one state of a deterministic automaton (DFA, the subset construction), with a table from byte to next state.
// Tables and masks are filled in when they are first needed, and kept.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/work_budget.h"
#include "text/grammar/grammar.h"
#include "text/grammar/pushdown_automaton.h"

namespace gemma4 {

constexpr std::pair<GrammarSymbol, const char*> kGrammarSymbolNames[] = {{kQuote, "<|\"|>"},
                                                                         {kCallBegin, "<|tool_call>"},
                                                                         {kCallEnd, "<tool_call|>"},
                                                                         {kChannelBegin, "<|channel>"},
                                                                         {kChannelEnd, "<channel|>"}};

struct GrammarVocabulary::State {
  struct Node {
    uint8_t byte;
    int32_t token_begin;  // its tokens are tokens[token_begin, the next node's token_begin)
    int32_t end;          // the first node that is not below it
  };
  struct Trie {
    std::vector<Node> nodes;      // in depth-first order, and a sentinel
    std::vector<int32_t> depths;  // [nodes] a node's depth in bytes; the first bytes of tokens have depth 0
    std::vector<int32_t> tokens;
  };
  Trie all;
  // Plain tokens are whole characters that every string takes (vocabulary.cc). Most tokens are.
  Trie others;                                       // the tokens that are not plain
  int plain_longest = 0;                             // characters of the longest plain token
  std::vector<std::vector<uint32_t>> plain;          // [plain_longest + 1] masks of those of up to so many characters
  std::vector<int32_t> quoted;                       // tokens with a " in them
  std::array<int32_t, kInputsEnd - kQuote> symbols;  // ids, -1 where the vocabulary lacks one
  int vocab_size = 0;
  int longest = 0;  // bytes of the longest token
};

// Masks of a grammar's positions, kept for positions that come again. A mask is made by walking the trie of tokens with
// the automaton's sets of states, each set found once and numbered (a DFA made on the way). Where there are too many
// such sets, a mask is the union of the masks of its parts (PushdownAutomaton::parts): the number of parts is small
// where the number of sets is exponential.
class TokenMasks {
 public:
  using Mask = std::vector<uint32_t>;
  TokenMasks(const GrammarVocabulary::State& vocabulary, const PushdownAutomaton& automaton,
             std::vector<int32_t> end_ids, WorkBudget& budget, bool by_parts = false)
      : vocabulary_(vocabulary),
        automaton_(automaton),
        end_ids_(std::move(end_ids)),
        budget_(budget),
        held_(budget),
        by_parts_(by_parts) {}

  // Any thread may call it. Throws the budget's errors, and can be called again after any of them.
  std::shared_ptr<const Mask> mask(const PushdownAutomaton::States& states) EXCLUDES(mutex_);

 private:
  using Trie = GrammarVocabulary::State::Trie;
  struct DfaState {
    PushdownAutomaton::States states;
    std::array<int32_t, 256> next;      // kUnknown, kDead or a number
    std::vector<int32_t> parts;         // numbers; empty until first used
    std::shared_ptr<const Mask> mask;   // null until first used
    std::shared_ptr<const Mask> bytes;  // of a part: without symbols and ends; null until first used
    std::optional<bool> keeps_plain;    // of a part: it is still there after each plain character
  };
  static constexpr int32_t kUnknown = -1, kDead = -2;

  DfaState& at(int32_t state) REQUIRES(mutex_) { return *dfa_states_[static_cast<size_t>(state)]; }
  int32_t find(PushdownAutomaton::States states) REQUIRES(mutex_);
  int32_t next(int32_t state, uint8_t byte) REQUIRES(mutex_);
  bool follow(std::vector<int32_t>& states, int first, int last) REQUIRES(mutex_);
  bool plain_characters(int32_t state, std::vector<int32_t>& after) REQUIRES(mutex_);
  bool leads_back(int32_t state, int first, int last, int32_t part) REQUIRES(mutex_);
  bool every_plain_leads_back(int32_t part) REQUIRES(mutex_);
  bool keeps_plain(int32_t part) REQUIRES(mutex_);
  bool no_plain(int32_t state) REQUIRES(mutex_);
  int plain_limit(int32_t state) REQUIRES(mutex_);
  bool walk(const Trie& trie, int32_t start, Mask& mask) REQUIRES(mutex_);
  const std::vector<int32_t>& parts(int32_t state) REQUIRES(mutex_);
  std::shared_ptr<const Mask> mask_of_part(int32_t part) REQUIRES(mutex_);
  std::shared_ptr<const Mask> make(int32_t state) REQUIRES(mutex_);
  std::shared_ptr<const Mask> keep(Mask mask) REQUIRES(mutex_);

  const GrammarVocabulary::State& vocabulary_;
  const PushdownAutomaton& automaton_;
  const std::vector<int32_t> end_ids_;
  WorkBudget& budget_;
  Mutex mutex_;
  std::vector<std::unique_ptr<DfaState>> dfa_states_ GUARDED_BY(mutex_);
  std::unordered_map<std::string, int32_t> numbers_ GUARDED_BY(mutex_);  // by PushdownAutomaton::key
  HeldBytes held_ GUARDED_BY(mutex_);                                    // of all states and masks
  bool by_parts_ GUARDED_BY(mutex_) = false;                             // there were too many sets once
};

}  // namespace gemma4
