#include "text/grammar/pushdown_automaton.h"

#include <algorithm>
#include <unordered_set>

#include "base/check.h"

namespace gemma4 {
namespace {

constexpr size_t kNodesMax = 1 << 20;
constexpr uint32_t kFramesMax = 512;  // frames of a stack; deeper nesting is not allowed

size_t combine(size_t hash, size_t value) { return (hash ^ (value + 0x9e3779b97f4a7c15u + (hash << 6) + (hash >> 2))); }

bool same_stack(const PushdownAutomaton::Frame* a, const PushdownAutomaton::Frame* b) {
  for (; a != b; a = a->below.get(), b = b->below.get()) {
    if (a == nullptr || b == nullptr || a->hash != b->hash || a->node != b->node || a->least != b->least ||
        a->most != b->most) {
      return false;
    }
  }
  return true;
}

PushdownAutomaton::Stack push(int32_t node, uint32_t least, uint32_t most, PushdownAutomaton::Stack below) {
  const uint32_t depth = below ? below->depth + 1 : 1;
  size_t hash = below ? below->hash : 0;
  for (const size_t value : {static_cast<size_t>(node), static_cast<size_t>(least), static_cast<size_t>(most)}) {
    hash = combine(hash, value);
  }
  return std::make_shared<const PushdownAutomaton::Frame>(
      PushdownAutomaton::Frame{node, least, most, depth, hash, std::move(below)});
}

}  // namespace

ByteSet byte_range(int first, int last) {
  ByteSet set;
  for (int b = first; b <= last; ++b) set.set(static_cast<size_t>(b));
  return set;
}

int PushdownAutomaton::add(Node node) {
  if (nodes_.size() >= kNodesMax) throw Error("the schema is too large");
  nodes_.push_back(node);
  return static_cast<int>(nodes_.size()) - 1;
}

int PushdownAutomaton::bytes(const ByteSet& set, int next) {
  size_t i = sets_.size();
  while (i > 0 && sets_[i - 1] != set) --i;
  if (i == 0) {
    sets_.push_back(set);
    i = sets_.size();
  }
  return add({kBytes, static_cast<int32_t>(i - 1), next});
}

int PushdownAutomaton::literal(std::string_view text, int next) {
  for (size_t i = text.size(); i-- > 0;) next = byte(text[i], next);
  return next;
}

int PushdownAutomaton::symbol(GrammarSymbol symbol, int next) { return add({kSymbol, symbol, next}); }

int PushdownAutomaton::split(std::vector<int> choices) {
  CHECK(!choices.empty());
  if (choices.size() == 1) return choices[0];
  choices_.push_back(std::move(choices));
  return add({kSplit, static_cast<int32_t>(choices_.size()) - 1});
}

int PushdownAutomaton::call(int rule, int next) { return add({kCall, rule, next}); }
int PushdownAutomaton::finish() { return add({kFinish}); }

int PushdownAutomaton::loop(int body, uint32_t least, uint32_t most, int next) {
  return add({kLoop, body, next, least, most});
}

int PushdownAutomaton::one_of(std::vector<std::vector<int>> sequences, int next) {
  std::sort(sequences.begin(), sequences.end());
  const auto build = [&](const auto& self, size_t begin, size_t end, size_t at) -> int {
    std::vector<int> choices;
    while (begin < end && sequences[begin].size() == at) {
      if (choices.empty()) choices.push_back(next);
      ++begin;
    }
    while (begin < end) {
      const int input = sequences[begin][at];
      size_t stop = begin;
      while (stop < end && sequences[stop][at] == input) ++stop;
      const int rest = self(self, begin, stop, at + 1);
      choices.push_back(input < 256 ? byte(static_cast<char>(input), rest)
                                    : symbol(static_cast<GrammarSymbol>(input), rest));
      begin = stop;
    }
    return split(std::move(choices));
  };
  return build(build, 0, sequences.size(), 0);
}

int PushdownAutomaton::reserve() {
  choices_.emplace_back();
  return add({kSplit, static_cast<int32_t>(choices_.size()) - 1});
}

void PushdownAutomaton::set(int node, int target) {
  choices_[static_cast<size_t>(nodes_[static_cast<size_t>(node)].a)] = {target};
}

int PushdownAutomaton::new_rule() {
  rules_.push_back(-1);
  return static_cast<int>(rules_.size()) - 1;
}

void PushdownAutomaton::check() const {
  // Collects the rules that each rule may call before it reads anything. In the graphs of schemas no loop or call that
  // may match nothing precedes a call, so looking at the first node of each path is enough.
  std::vector<std::vector<int>> calls(rules_.size());
  for (size_t rule = 0; rule < rules_.size(); ++rule) {
    std::vector<int> work = {rules_[rule]};
    std::unordered_set<int> seen;
    while (!work.empty()) {
      const int at = work.back();
      work.pop_back();
      if (!seen.insert(at).second) continue;
      const Node& node = nodes_[static_cast<size_t>(at)];
      if (node.op == kSplit) {
        for (const int choice : choices_[static_cast<size_t>(node.a)]) work.push_back(choice);
      } else if (node.op == kCall) {
        calls[rule].push_back(node.a);
      } else if (node.op == kLoop) {
        work.push_back(node.a);
        if (node.least == 0) work.push_back(node.b);
      }
    }
  }
  std::vector<int> state(rules_.size(), 0);  // 1: on the path, 2: done
  for (size_t root = 0; root < rules_.size(); ++root) {
    std::vector<std::pair<int, size_t>> path = {{static_cast<int>(root), 0}};
    while (!path.empty()) {
      auto& [rule, at] = path.back();
      const auto r = static_cast<size_t>(rule);
      if (at == 0 && state[r] == 2) {
        path.pop_back();
        continue;
      }
      state[r] = 1;
      if (at == calls[r].size()) {
        state[r] = 2;
        path.pop_back();
        continue;
      }
      const int callee = calls[r][at++];
      if (state[static_cast<size_t>(callee)] == 1) throw Error("a schema refers to itself without end ($ref)");
      if (state[static_cast<size_t>(callee)] == 0) path.emplace_back(callee, 0);
    }
  }
}

// The epsilon closure: follows all nodes that read nothing, and collects the states that read an input.
class PushdownAutomaton::Closure {
 public:
  Closure(const PushdownAutomaton& automaton, States& out) : a_(automaton), out_(out) {}

  void add(int node, const Stack& stack) {
    work_.push_back({node, a_.node(node).least, a_.node(node).most, stack});
    while (!work_.empty()) {
      Item item = std::move(work_.back());
      work_.pop_back();
      if (seen_.insert(item).second) follow(item);
    }
  }

 private:
  struct Item {
    int32_t node;
    uint32_t least, most;
    Stack stack;
    bool operator==(const Item& o) const {
      return node == o.node && least == o.least && most == o.most && same_stack(stack.get(), o.stack.get());
    }
  };
  struct Hash {
    size_t operator()(const Item& i) const {
      return combine(combine(combine(i.stack ? i.stack->hash : 0, static_cast<size_t>(i.node)), i.least), i.most);
    }
  };

  void go(int node, const Stack& stack) { work_.push_back({node, a_.node(node).least, a_.node(node).most, stack}); }

  void follow(const Item& item) {
    const Node& node = a_.node(item.node);
    const bool deep = item.stack && item.stack->depth >= kFramesMax;
    switch (node.op) {
      case kBytes:
      case kSymbol:
        out_.all.push_back({item.node, item.stack});
        break;
      case kSplit:
        for (const int choice : a_.choices_[static_cast<size_t>(node.a)]) go(choice, item.stack);
        break;
      case kCall:  // a tail call needs no frame
        if (a_.node(node.b).op == kFinish) {
          go(a_.rules_[static_cast<size_t>(node.a)], item.stack);
        } else if (!deep) {
          go(a_.rules_[static_cast<size_t>(node.a)], push(node.b, 0, kNotLooping, item.stack));
        }
        break;
      case kLoop:
        if (item.least == 0) go(node.b, item.stack);
        if (item.most > 0 && !deep) {
          const uint32_t most = item.most == kUnbounded ? kUnbounded : item.most - 1;
          go(node.a, push(item.node, item.least > 0 ? item.least - 1 : 0, most, item.stack));
        }
        break;
      case kFinish:
        if (!item.stack) {
          out_.complete = true;
        } else if (item.stack->most != kNotLooping) {
          work_.push_back({item.stack->node, item.stack->least, item.stack->most, item.stack->below});
        } else {
          go(item.stack->node, item.stack->below);
        }
        break;
    }
  }

  const PushdownAutomaton& a_;
  States& out_;
  std::vector<Item> work_;
  std::unordered_set<Item, Hash> seen_;
};

PushdownAutomaton::States PushdownAutomaton::start(int rule) const {
  States states;
  Closure(*this, states).add(rules_[static_cast<size_t>(rule)], nullptr);
  return states;
}

bool PushdownAutomaton::matches(const Node& node, int input) const {
  if (node.op == kSymbol) return node.a == input;
  return input < 256 && sets_[static_cast<size_t>(node.a)][static_cast<size_t>(input)];
}

bool PushdownAutomaton::reads(const States& states, int input) const {
  return std::any_of(states.all.begin(), states.all.end(),
                     [&](const State& state) { return matches(node(state.node), input); });
}

PushdownAutomaton::States PushdownAutomaton::advance(const States& states, int input) const {
  States next;
  Closure closure(*this, next);
  for (const State& state : states.all) {
    if (matches(node(state.node), input)) closure.add(node(state.node).b, state.stack);
  }
  return next;
}

PushdownAutomaton::States PushdownAutomaton::clamp(const States& states, uint32_t limit) const {
  States result;
  result.complete = states.complete;
  const auto clamped = [&](uint32_t count) { return count == kUnbounded ? count : std::min(count, limit + 1); };
  for (const State& state : states.all) {
    std::vector<const Frame*> frames;
    for (const Frame* frame = state.stack.get(); frame != nullptr; frame = frame->below.get()) frames.push_back(frame);
    Stack stack;
    for (size_t i = frames.size(); i-- > 0;) {
      const uint32_t most = frames[i]->most == kNotLooping ? kNotLooping : clamped(frames[i]->most);
      stack = push(frames[i]->node, clamped(frames[i]->least), most, stack);
    }
    result.all.push_back({state.node, std::move(stack)});
  }
  return result;
}

std::string PushdownAutomaton::key(const States& states) {
  std::vector<std::string> keys;
  for (const State& state : states.all) {
    std::string bytes;
    const auto put = [&](uint32_t value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
    put(static_cast<uint32_t>(state.node));
    for (const Frame* frame = state.stack.get(); frame != nullptr; frame = frame->below.get()) {
      put(static_cast<uint32_t>(frame->node));
      put(frame->least);
      put(frame->most);
    }
    keys.push_back(std::move(bytes));
  }
  std::sort(keys.begin(), keys.end());
  std::string key(1, states.complete ? '1' : '0');
  for (const std::string& bytes : keys) {
    const auto size = static_cast<uint32_t>(bytes.size());
    key.append(reinterpret_cast<const char*>(&size), sizeof(size)).append(bytes);
  }
  return key;
}

}  // namespace gemma4
