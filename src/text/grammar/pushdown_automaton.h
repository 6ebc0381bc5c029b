// Automaton: a grammar as a graph that is walked byte by byte. Rules may call each other, so what has been written so
// far is a set of threads, each a node and a stack of what to return to. Loops count on the stack, so "at most 1000
// items" is one node. Besides bytes it reads a few symbols: control tokens, which no bytes spell.
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace gemma4 {

// Inputs 0 .. 255 are bytes; these follow.
enum GrammarSymbol { kQuote = 256, kCallBegin, kCallEnd, kChannelBegin, kChannelEnd, kInputsEnd };

using ByteSet = std::bitset<256>;
ByteSet byte_range(int first, int last);  // both included
constexpr uint32_t kUnbounded = ~uint32_t{0};

class Automaton {
 public:
  // Every builder returns the node that matches something and then goes on at `next`.
  int bytes(const ByteSet& set, int next);
  int byte(char c, int next) {
    return bytes(byte_range(static_cast<unsigned char>(c), static_cast<unsigned char>(c)), next);
  }
  int literal(std::string_view text, int next);
  int symbol(GrammarSymbol symbol, int next);
  int split(std::vector<int> choices);
  int call(int rule, int next);
  int finish();  // the end of a rule
  // `body` ends in finish(); it runs from `least` to `most` times and consumes something each time (or least is 0).
  int loop(int body, uint32_t least, uint32_t most, int next);
  // One of several sequences of inputs; shared beginnings are shared nodes.
  int one_of(std::vector<std::vector<int>> sequences, int next);
  // Everything but `node` itself, for a cycle: reserve a node, use it, then say where it leads.
  int reserve();
  void set(int node, int target);

  int new_rule();
  void set_rule(int rule, int start) { rules_[static_cast<size_t>(rule)] = start; }

  // Throws Error where a rule can call itself before anything is read.
  void check() const;

  struct Frame;
  using Stack = std::shared_ptr<const Frame>;
  struct Frame {
    int32_t node;          // where to go on, or the loop
    uint32_t least, most;  // of a loop: how often its body must and may still run; else most is kNotLooping
    uint32_t depth;
    size_t hash;
    Stack below;
  };
  struct Thread {
    int32_t node;  // reads an input next
    Stack stack;
  };
  struct Threads {
    std::vector<Thread> all;  // none twice
    bool complete = false;    // the whole may end here
    bool dead() const { return all.empty() && !complete; }
  };
  Threads start(int rule) const;
  Threads step(const Threads& threads, int input) const;
  // Threads that read the same texts of up to `limit` bytes: counters above it do not matter.
  Threads clamp(const Threads& threads, uint32_t limit) const;
  bool reads(const Threads& threads, int input) const;
  static std::string key(const Threads& threads);  // equal for equal threads

 private:
  enum Op : uint8_t { kBytes, kSymbol, kSplit, kCall, kFinish, kLoop };
  struct Node {
    Op op;
    int32_t a = 0,
            b = 0;  // kBytes: set, next. kSymbol: symbol, next. kSplit: list. kCall: rule, next. kLoop: body, next
    uint32_t least = 0, most = 0;
  };
  class Closure;
  static constexpr uint32_t kNotLooping = kUnbounded - 1;
  const Node& node(int i) const { return nodes_[static_cast<size_t>(i)]; }
  int add(Node node);
  bool matches(const Node& node, int input) const;

  std::vector<Node> nodes_;
  std::vector<ByteSet> sets_;
  std::vector<std::vector<int>> choices_;
  std::vector<int> rules_;
};

}  // namespace gemma4
