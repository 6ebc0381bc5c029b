// PushdownAutomaton: a grammar as a graph that is walked byte by byte. Rules may call each other, so a state is a node
// and a stack of nodes to return to, and the text so far leads to a set of states. Loop counters are on the stack, so
// "at most 1000 items" is one node. Besides bytes the automaton reads a few symbols: control tokens, which no bytes
// spell. Building and walking charge the request's WorkBudget and throw its errors. Nothing recurses on the length of a
// schema.
#pragma once

#include <bitset>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/check.h"
#include "base/work_budget.h"

namespace gemma4 {

// Inputs 0 .. 255 are bytes; these follow.
enum GrammarSymbol { kQuote = 256, kCallBegin, kCallEnd, kChannelBegin, kChannelEnd, kInputsEnd };

using ByteSet = std::bitset<256>;
ByteSet byte_range(int first, int last);  // both included
constexpr uint32_t kUnbounded = ~uint32_t{0};

struct EndlessGrammar : Error {  // no text matches
  EndlessGrammar(const std::string& what, std::vector<int> endless) : Error(what), rules(std::move(endless)) {}
  std::vector<int> rules;  // those that no text matches, sorted
};
struct LeftRecursion : Error {  // a rule can call itself before it reads an input
  LeftRecursion(const std::string& what, int which) : Error(what), rule(which) {}
  int rule;
};

class PushdownAutomaton {
 public:
  explicit PushdownAutomaton(WorkBudget& budget) : budget_(budget), held_(budget) {}

  WorkBudget& budget() const { return budget_; }

  // Every builder returns a node that matches something and continues at `next`.
  int bytes(const ByteSet& set, int next);
  int byte(char c, int next) {
    return bytes(byte_range(static_cast<unsigned char>(c), static_cast<unsigned char>(c)), next);
  }
  int literal(std::string_view text, int next);
  int symbol(GrammarSymbol symbol, int next);
  int split(std::vector<int> choices);
  int call(int rule, int next);
  int finish();  // the end of a rule
  // `body` ends in finish() and runs from `least` to `most` times. Each run consumes an input, unless least is 0.
  int loop(int body, uint32_t least, uint32_t most, int next);
  // Counts the characters of `body`, which has a tick() before each and ends in count_end(): from `least` to `most`.
  // `slack`: no tick() in it looks further ahead.
  int counted(int body, uint32_t least, uint32_t most, uint32_t slack, int next);
  // Passes only where after one character at least `shortest` more may come, and at most `longest` more must.
  int tick(uint32_t shortest, uint32_t longest, int next);
  int count_end();
  int nothing();  // matches no text
  // One of several sequences of inputs, as a trie: common prefixes share nodes.
  int one_of(std::vector<std::vector<int>> sequences, int next);
  // Nodes made while a Group lives belong together: those of one character, after which there is one node. `what`:
  // equal for groups that are made alike. (Of nested ones the outermost counts.)
  class Group {
   public:
    Group(PushdownAutomaton& a, const std::vector<uint32_t>& what) : a_(a), outer_(a.group_) {
      if (outer_ >= 0) return;
      const auto like = a.likes_.try_emplace(what, static_cast<int32_t>(a.likes_.size())).first->second;
      a_.group_ = static_cast<int32_t>(a_.groups_.size());
      a_.groups_.push_back({like, static_cast<int32_t>(a_.nodes_.size())});
    }
    ~Group() { a_.group_ = outer_; }
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;

   private:
    PushdownAutomaton& a_;
    const int32_t outer_;
  };
  // For cycles: reserve() makes a node, which may be used at once; set() then connects it to `target`.
  int reserve();
  void set(int node, int target);

  int new_rule();
  void set_rule(int rule, int start) { rules_[static_cast<size_t>(rule)] = start; }

  // What was built so far. roll_back() drops what was built since, to which nothing before may refer.
  struct Mark {
    size_t nodes = 0, choices = 0, rules = 0;
  };
  Mark mark() const { return {nodes_.size(), choices_.size(), rules_.size()}; }
  void roll_back(const Mark& mark);

  // Throws LeftRecursion (but a rule that is one of its own alternatives adds nothing), and EndlessGrammar if no text
  // matches `start`. Takes away the choices that never come to an end.
  // Looks at what was built since `from`, which refers to nothing before.
  void check(int start, const Mark& from);
  void check(int start) { check(start, Mark()); }

  struct Frame;
  using Stack = std::shared_ptr<const Frame>;
  struct Frame {
    int32_t node;          // the node to return to, or the loop
    uint32_t least, most;  // of a loop: how often its body must and may still run. Otherwise most is kNotLooping
    uint32_t depth;
    size_t shape;  // hash of the nodes from here down, without the counters
    Stack below;
  };
  struct State {
    int32_t node;  // the next input is matched here
    Stack stack;
  };
  struct States {
    std::vector<State> all;  // without duplicates, and without a state that accepts a part of what another accepts
    bool complete = false;   // the output may end here
    bool dead() const { return all.empty() && !complete; }
  };
  States start(int rule) const;
  States advance(const States& states, int input) const;
  // Equivalent states for texts of up to `limit` bytes: loop counters above it are reduced, as they make no difference.
  States clamp(const States& states, uint32_t limit) const;
  bool reads(const States& states, int input) const;
  bool reads_bytes(const States& states) const;  // and not only symbols
  ByteSet same_bytes(const States& states, uint8_t byte) const;  // those that lead where `byte` leads
  // The same states, divided by their groups and stacks. What a union of sets leads to is the union of what each leads
  // to.
  std::vector<States> parts(const States& states) const;
  States united(const std::vector<States>& all) const;
  // Of a part: made by a Group, so that all characters lead to the same states.
  bool is_one_character(const States& part) const { return !part.all.empty() && node(part.all[0].node).group >= 0; }
  // Of a part: equal where the same characters may come.
  std::vector<int32_t> characters_key(const States& part) const;
  static std::string key(const States& states);  // equal exactly for equal sets

 private:
  enum Op : uint8_t { kBytes, kSymbol, kSplit, kCall, kFinish, kLoop, kCount, kTick, kCountEnd };
  struct Node {
    Op op;
    // kBytes: set, next. kSymbol: symbol, next. kSplit: list. kCall: rule, next. kLoop, kCount: body, next. kTick: next
    // in b
    int32_t a = 0, b = 0;
    uint32_t least = 0, most = 0;
    int32_t group = 0;   // negative: alone
    uint32_t slack = 0;  // kCount
  };
  class Closure;
  friend struct StackOps;
  static constexpr uint32_t kNotLooping = kUnbounded - 1;
  const Node& node(int i) const { return nodes_[static_cast<size_t>(i)]; }
  int add(Node node);
  bool matches(const Node& node, int input) const;
  std::vector<bool> rules_that_may_be_empty(const Mark& from) const;
  void check_recursion(const Mark& from) const;
  void check_productive(int start, const Mark& from);
  void prune(std::vector<State>& states) const;

  struct GroupOrigin {
    int32_t like, first;  // equal for groups that are made alike; the first node
  };
  int32_t group_ = -1;
  std::vector<GroupOrigin> groups_;
  std::map<std::vector<uint32_t>, int32_t> likes_;
  WorkBudget& budget_;
  HeldBytes held_;
  std::vector<Node> nodes_;
  std::vector<ByteSet> sets_;
  std::unordered_map<ByteSet, int32_t> set_numbers_;
  std::vector<std::vector<int>> choices_;
  std::vector<int> rules_;
};

}  // namespace gemma4
