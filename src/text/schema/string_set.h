// StringSet: the strings that satisfy several conditions at once: patterns that are found in them, patterns that are
// not, and a length. It tells whether a string is one of them, and makes the deterministic automaton of all of them
// (DFA), of which the grammar is built. Lookaheads, anchors inside and word boundaries are understood: a lookahead is
// an obligation that a path of the nondeterministic automaton carries along until it is met or broken.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/work_budget.h"
#include "text/schema/regex.h"

namespace gemma4 {

class StringSet {
 public:
  struct Terms {
    std::vector<const Regex*> found, not_found;  // anywhere in the string, unless their anchors say otherwise
    uint32_t least = 0, most = kNoLimit;         // code points
  };
  // Null where that takes too many nodes, or where lookaheads are in two of the patterns, in one that must not be
  // found, or in one another.
  static std::unique_ptr<StringSet> make(const Terms& terms, WorkBudget& budget);

  bool contains(std::string_view text);  // UTF-8

  struct Dfa {
    struct State {
      bool accepts = false;
      std::vector<std::pair<std::vector<PointRange>, int32_t>> next;  // disjoint ranges, and where they lead
    };
    std::vector<State> states;  // the first is where strings begin; empty: there is no such string
  };
  // Without states from which no string comes to its end. Nothing where it has more than `states_max`, or takes more
  // than a twentieth of what a request may.
  std::optional<Dfa> dfa(size_t states_max);

 private:
  enum Op : uint8_t { kSet, kSplit, kBeginHere, kEndHere, kBoundary, kLook, kAccept };
  struct Node {
    Op op;
    bool negative = false;      // kBoundary, kLook
    int32_t a = -1, next = -1;  // kSet: set. kSplit: list. kLook: where the condition begins
  };
  enum Following : uint8_t { kUnknown, kWord, kNoWord, kAtEnd };  // what is known of the next character
  struct Where {
    bool at_start = false, after_word = false;
    Following following = kUnknown;
  };
  using Nodes = std::vector<int32_t>;
  struct Item {
    int32_t node, obligations;
    auto operator<=>(const Item&) const = default;
  };
  struct State {
    std::vector<Item> items;
    bool at_start = false, after_word = false;
  };

  explicit StringSet(WorkBudget& budget) : budget_(budget), held_(budget) {}
  int32_t add(Node node);
  int32_t add_set(const std::vector<PointRange>& ranges, int32_t next);
  int32_t add_split(Nodes choices);
  int32_t build(const Regex& regex, int32_t next, bool inside);
  int32_t build_repeat(const Regex& regex, int32_t next, bool inside);
  int32_t search(const Regex& regex, int32_t next, bool inside);  // anything, then `regex`
  int32_t anything(int32_t next);
  void divide_alphabet();
  int32_t class_of(uint32_t point) const;

  bool follow(Nodes from, const Where& where, Nodes& out) const;  // true where it comes to kAccept
  int32_t with_obligation(int32_t obligations, bool negative, const Nodes& nodes);
  // What is left of obligations once `advance` has taken their nodes on; -1 where one is broken.
  template <typename Advance>
  int32_t advanced(int32_t obligations, const Where& where, const Advance& advance);
  std::vector<Item> closure(std::vector<Item> work, const Where& where);
  int32_t number_of(State state);
  int32_t start();
  int32_t step(int32_t state, int32_t character_class);
  bool accepts(int32_t state);
  std::vector<int32_t> live_numbers(const std::vector<std::vector<int32_t>>& users, const std::vector<bool>& accepting);

  void spend(uint64_t steps) const {
    budget_.charge(steps);
    spent_ += steps;
  }

  WorkBudget& budget_;
  HeldBytes held_;
  mutable uint64_t spent_ = 0;
  bool too_large_ = false, boundaries_ = false;
  std::vector<Node> nodes_;
  std::vector<Nodes> lists_;
  std::vector<std::vector<PointRange>> sets_;
  std::map<std::vector<PointRange>, int32_t> set_numbers_;
  int32_t begin_ = -1, word_set_ = -1;
  std::vector<uint32_t> interval_begins_;        // of the alphabet, sorted; the first is 0
  Nodes interval_classes_;                       // [intervals]
  std::vector<std::vector<bool>> class_in_set_;  // [classes][sets]
  std::map<std::pair<bool, Nodes>, int32_t> obligation_numbers_;
  std::vector<std::pair<bool, Nodes>> obligations_;  // negative; where the condition has come to
  std::map<Nodes, int32_t> obligation_set_numbers_;
  std::vector<Nodes> obligation_sets_;  // the first is empty
  std::map<Nodes, int32_t> state_numbers_;
  std::vector<State> states_;
  std::vector<Nodes> steps_;  // [states][classes]: kNotMade, kDead or a state
};

}  // namespace gemma4
