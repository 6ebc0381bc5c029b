// TokenMasks: which tokens a grammar allows next, as a bit mask over the whole vocabulary. The vocabulary is a trie of
// its tokens' bytes. Walking the trie with the pushdown automaton itself would be slow, so each set of automaton states
// becomes one state of a deterministic automaton (DFA, the subset construction), with a table from byte to next state.
// Tables and masks are filled in when they are first needed, and kept.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/work_budget.h"
#include "text/grammar/character_set.h"
#include "text/grammar/grammar.h"
#include "text/grammar/pushdown_automaton.h"

namespace gemma4 {

constexpr std::pair<GrammarSymbol, const char*> kGrammarSymbolNames[] = {{kQuote, "<|\"|>"},
                                                                         {kCallBegin, "<|tool_call>"},
                                                                         {kCallEnd, "<tool_call|>"},
                                                                         {kChannelBegin, "<|channel>"},
                                                                         {kChannelEnd, "<channel|>"}};

struct GrammarVocabulary::State {
  // Small, since what a walk waits for is memory. A node's tokens are tokens[begin, begin + own); those of its children
  // follow, one child after the other.
  struct Node {
    uint8_t byte;
    uint8_t longest;     // characters that a token has after the node. 0: none, too many, or it is inside a character
    uint16_t count : 9;  // of its children, which are nodes[children, children + count)
    uint16_t own : 7;
    int32_t children;
    int32_t begin;
    uint32_t kinds;  // CharacterSet::kinds() of what tokens have after the node, where longest > 0
  };
  struct Trie {
    std::vector<Node> nodes;           // the first is the root
    std::vector<int32_t> rests;        // [nodes] what tokens have after them: an index in `sets`, where longest > 0
    std::vector<int32_t> tokens;       // in order of their bytes
    std::vector<uint16_t> characters;  // [tokens]
    std::vector<CharacterSet> sets;
    std::vector<uint32_t> mask;  // of all its tokens
  };
  // All tokens, in several tries: those whose characters are of the same kinds are together if they are many, so that a
  // class of characters takes whole tries and few mixed branches are left to walk.
  std::vector<Trie> all;
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
// the automaton's sets of states, each set found once and numbered (a DFA made on the way). A branch whose tokens
// consist of characters that may come in any order is taken as a whole: most of a vocabulary is. Where there are too
// many such sets, a mask is the union of the masks of its parts (PushdownAutomaton::parts): the number of parts is
// small where the number of sets is exponential.
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
  static constexpr int32_t kUnknown = -1, kDead = -2, kMixed = -3;
  struct Ahead;
  // A node of a trie and the end of its tokens; the characters up to the node.
  struct Branch {
    int32_t node, end, characters;
  };
  // Where a part's characters past ASCII lead. All lead to one state, and which may come depends on the part's nodes
  // alone: so their bytes are walked in the states of the first part with equal nodes, and not once for each count of
  // a loop.
  struct WideWay {
    int32_t from;           // a state: where the bytes are walked
    int32_t to = kUnknown;  // after a whole character. kUnknown: this part is not of that kind, and `from` is it
  };
  struct DfaState {
    PushdownAutomaton::States states;
    std::array<int32_t, 256> next;      // kUnknown, kDead or a number
    std::vector<int32_t> parts;         // numbers; empty until first used
    std::shared_ptr<const Mask> mask;   // null until first used
    std::shared_ptr<const Mask> bytes;  // of a part: without symbols and ends; null until first used
    int32_t tail = kUnknown;            // where each of the bytes 80 .. BF leads; kMixed: to several
    int32_t met = 0;                    // tokens below the nodes of the trie where it was met
    std::unique_ptr<Ahead> ahead;       // null until it is worth it
    std::unique_ptr<std::vector<WideWay>> wide;  // null until first used
  };
  // What texts may come, whatever the order of their characters.
  struct Ahead {
    CharacterSet set;     // of the part that takes most characters
    int32_t to = kDead;   // where they lead it
    uint32_t kinds = 0, whole_kinds = 0;  // of the set
    bool alone = false;   // no other part takes any of these characters
    std::vector<CharacterSet> texts;  // [n]: all texts of up to n + 1 of these characters may come
    int32_t state = 0;                // after all texts but the last, if that is empty
    bool all_alone = true;            // up to there
    bool endless = false;             // the last set is that of all longer texts, too
    int32_t end = kUnknown;           // end_of_texts(), or kDead: not easy to tell, or kMixed: nor with more work
  };
  // Of a part: the characters that it takes.
  struct Kind {
    CharacterSet set, touched;  // all of these, and all that it might take
    std::string sample;         // one of them
    bool one_way = true;        // `set` is all that it takes
    bool all_plain = false, any_plain = false;  // plain characters: all, or some
    int32_t first = kUnknown;  // the first part of this kind; its number
    std::string wide;          // a character past ASCII that it takes. Empty: none, or not all lead to one state
    static Kind unclear() {
      constexpr uint64_t kAll = ~uint64_t{0};
      return {{}, {kAll, kAll, kAll}, "", false, false, true, kUnknown, ""};
    }
  };

  DfaState& at(int32_t state) REQUIRES(mutex_) { return *dfa_states_[static_cast<size_t>(state)]; }
  int32_t find(PushdownAutomaton::States states) REQUIRES(mutex_);
  int32_t next(int32_t state, uint8_t byte) REQUIRES(mutex_);
  int plain_limit(int32_t state) REQUIRES(mutex_);
  int32_t after_bytes(int32_t state, ByteInterval bytes) REQUIRES(mutex_);
  int32_t after_sequences(int32_t state, const std::vector<std::vector<ByteInterval>>& sequences) REQUIRES(mutex_);
  bool takes_any(int32_t state, const std::vector<std::vector<ByteInterval>>& sequences) REQUIRES(mutex_);
  const Kind& kind(const PushdownAutomaton::States& part) REQUIRES(mutex_);
  std::string wide_character(int32_t part) REQUIRES(mutex_);
  PushdownAutomaton::States after(PushdownAutomaton::States part, std::string_view character) REQUIRES(mutex_);
  const std::vector<WideWay>& wide_ways(int32_t state) REQUIRES(mutex_);
  const WideWay* wide_way(int32_t state, uint8_t byte) REQUIRES(mutex_);
  Ahead& ahead(int32_t state) REQUIRES(mutex_);
  const CharacterSet& texts(int32_t state, int characters) REQUIRES(mutex_);
  int end_of_texts(int32_t state, bool thorough) REQUIRES(mutex_);
  bool take_below(int32_t state, const Trie& trie, const Branch& branch, Mask& mask) REQUIRES(mutex_);
  bool walk(const Trie& trie, int32_t start, Mask& mask) REQUIRES(mutex_);
  const std::vector<int32_t>& parts(int32_t state) REQUIRES(mutex_);
  void walk_part(const Trie& trie, int32_t start, Mask& mask) REQUIRES(mutex_);
  std::shared_ptr<const Mask> mask_of_part(int32_t part) REQUIRES(mutex_);
  std::shared_ptr<const Mask> make(int32_t state) REQUIRES(mutex_);
  std::shared_ptr<const Mask> keep(Mask mask) REQUIRES(mutex_);

  const GrammarVocabulary::State& vocabulary_;
  const PushdownAutomaton& automaton_;
  const std::vector<int32_t> end_ids_;
  WorkBudget& budget_;
  Mutex mutex_;
  std::vector<std::unique_ptr<DfaState>> dfa_states_ GUARDED_BY(mutex_);
  std::map<std::vector<int32_t>, Kind> kinds_ GUARDED_BY(mutex_);        // by characters_key()
  std::unordered_map<std::string, int32_t> numbers_ GUARDED_BY(mutex_);  // by PushdownAutomaton::key
  HeldBytes held_ GUARDED_BY(mutex_);                                    // of all states and masks
  bool by_parts_ GUARDED_BY(mutex_) = false;                             // there were too many sets once
};

}  // namespace gemma4
