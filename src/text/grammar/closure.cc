// How a PushdownAutomaton reads: the epsilon closure of a set of states, and the order between states that keeps such
// sets small.
// A counter is an interval: the body of a loop runs between `least` and `most` times more. Of two states that differ in
// their counters alone, one whose intervals contain the other's accepts all that the other accepts, so the other is
// left out (`covers`). Two that differ in one counter alone, with intervals that overlap or touch, accept together
// exactly what one state with the union accepts (`merge`). Without this, nested bounded repeats have a state for every
// combination of counts.
#include <algorithm>
#include <unordered_map>

#include "text/grammar/pushdown_automaton.h"

namespace gemma4 {
namespace {

constexpr uint32_t kFramesMax = 512;  // frames of a stack; deeper nesting is not allowed
constexpr uint64_t kItemSteps = 20;   // of a WorkBudget, for following one node
constexpr uint64_t kItemBytes = 128, kItemsHeld = 256;

size_t combine(size_t hash, size_t value) { return (hash ^ (value + 0x9e3779b97f4a7c15u + (hash << 6) + (hash >> 2))); }

}  // namespace

struct StackOps {
  using Frame = PushdownAutomaton::Frame;
  using Stack = PushdownAutomaton::Stack;
  static constexpr uint32_t kNotLooping = PushdownAutomaton::kNotLooping;

  static size_t shape(const Stack& stack) { return stack ? stack->shape : 0; }
  static uint32_t depth(const Stack& stack) { return stack ? stack->depth : 0; }

  static Stack push(int32_t node, uint32_t least, uint32_t most, Stack below) {
    const uint32_t above = depth(below) + 1;
    const size_t nodes = combine(shape(below), static_cast<size_t>(node));
    return std::make_shared<const Frame>(Frame{node, least, most, above, nodes, std::move(below)});
  }

  static bool same_nodes(const Frame* a, const Frame* b) {
    return a != nullptr && b != nullptr && a->node == b->node && (a->most == kNotLooping) == (b->most == kNotLooping);
  }

  // Whether all texts that lead from `b` to the end lead there from `a`. Adds the frames it looks at to `frames`.
  static bool covers(const Frame* a, const Frame* b, uint64_t& frames) {
    for (; a != b; a = a->below.get(), b = b->below.get()) {
      ++frames;
      if (!same_nodes(a, b) || a->shape != b->shape || a->least > b->least || a->most < b->most) return false;
    }
    return true;
  }

  static bool same(const Frame* a, const Frame* b, uint64_t& frames) {
    for (; a != b; a = a->below.get(), b = b->below.get()) {
      ++frames;
      if (!same_nodes(a, b) || a->shape != b->shape || a->least != b->least || a->most != b->most) return false;
    }
    return true;
  }

  // One stack that accepts exactly what either of two does; null where they differ in more than one counter, or where
  // its intervals leave a gap.
  static Stack merge(const Stack& a, const Stack& b, uint64_t& frames) {
    std::vector<const Frame*> above;  // of the frame that differs
    const Frame *x = a.get(), *y = b.get(), *different = nullptr, *other = nullptr;
    for (; x != y; x = x->below.get(), y = y->below.get()) {
      ++frames;
      if (!same_nodes(x, y)) return nullptr;
      const bool same = x->least == y->least && x->most == y->most;
      if (!same && different != nullptr) return nullptr;
      if (!same) different = x, other = y;
      if (different == nullptr) above.push_back(x);
    }
    if (different == nullptr) return a;
    const uint64_t end = uint64_t{std::min(different->most, other->most)} + 1;
    if (std::max(different->least, other->least) > end) return nullptr;
    Stack stack = push(different->node, std::min(different->least, other->least),
                       std::max(different->most, other->most), different->below);
    for (size_t i = above.size(); i-- > 0;) stack = push(above[i]->node, above[i]->least, above[i]->most, stack);
    return stack;
  }
};

// Follows all nodes that read nothing, and collects the states that read an input.
class PushdownAutomaton::Closure {
 public:
  Closure(const PushdownAutomaton& automaton, States& out) : a_(automaton), out_(out), held_(automaton.budget_) {}

  void add(int node, const Stack& stack) {
    go(node, stack, StackOps::depth(stack));
    while (!work_.empty()) {
      const Item item = std::move(work_.back());
      work_.pop_back();
      if (is_new(item)) follow(item);
    }
  }

 private:
  struct Item {
    int32_t node;
    uint32_t least, most;
    uint32_t floor;  // frames above this depth were pushed since the last input
    Stack stack;
  };

  // False where an item that was followed covers this one. That holds in spite of `floor`, which may forbid an earlier
  // item to return to a loop: it was entered from that loop, and the counters before entering cover those after it.
  bool is_new(const Item& item) {
    uint64_t frames = 0;
    const size_t key = combine(StackOps::shape(item.stack), static_cast<size_t>(item.node));
    const auto [begin, end] = seen_.equal_range(key);
    const bool covered = std::any_of(begin, end, [&](const auto& entry) {
      const Item& seen = entry.second;
      ++frames;
      return seen.node == item.node && seen.least <= item.least && seen.most >= item.most &&
             StackOps::covers(seen.stack.get(), item.stack.get(), frames);
    });
    a_.budget_.charge(kItemSteps + frames);
    if (covered) return false;
    seen_.emplace(key, item);
    if (seen_.size() % kItemsHeld == 0) held_.add(kItemsHeld * kItemBytes);
    return true;
  }

  void go(int node, const Stack& stack, uint32_t floor) {
    work_.push_back({node, a_.node(node).least, a_.node(node).most, floor, stack});
  }

  void follow(const Item& item) {
    const Node& node = a_.node(item.node);
    const bool deep = StackOps::depth(item.stack) >= kFramesMax;
    switch (node.op) {
      case kBytes:
      case kSymbol:
        out_.all.push_back({item.node, item.stack});
        break;
      case kSplit:
        for (const int choice : a_.choices_[static_cast<size_t>(node.a)]) go(choice, item.stack, item.floor);
        break;
      case kCall:  // a tail call needs no frame
        if (a_.node(node.b).op == kFinish) {
          go(a_.rules_[static_cast<size_t>(node.a)], item.stack, item.floor);
        } else if (!deep) {
          go(a_.rules_[static_cast<size_t>(node.a)], StackOps::push(node.b, 0, kNotLooping, item.stack), item.floor);
        }
        break;
      case kLoop:
        if (item.least == 0) go(node.b, item.stack, item.floor);
        if (item.most > 0 && !deep) {
          const uint32_t most = item.most == kUnbounded ? kUnbounded : item.most - 1;
          go(node.a, StackOps::push(item.node, item.least > 0 ? item.least - 1 : 0, most, item.stack), item.floor);
        }
        break;
      case kCount:
        if (!deep) go(node.a, StackOps::push(item.node, node.least, node.most, item.stack), item.floor);
        break;
      case kTick:
        tick(node, item);
        break;
      case kCountEnd:
        if (item.stack->least == 0) {
          const Frame& frame = *item.stack;
          go(a_.node(frame.node).b, frame.below, std::min(item.floor, frame.depth - 1));
        }
        break;
      case kFinish:
        finish(item);
        break;
    }
  }

  void tick(const Node& node, const Item& item) {  // the top frame is that of kCount
    const Frame& frame = *item.stack;
    if (frame.most == 0) return;
    const uint32_t least = frame.least > 0 ? frame.least - 1 : 0;
    const uint32_t most = frame.most == kUnbounded ? kUnbounded : frame.most - 1;
    if (most < node.least || least > node.most) return;
    go(node.b, StackOps::push(frame.node, least, most, frame.below), item.floor);
  }

  void finish(const Item& item) {
    if (!item.stack) {
      out_.complete = true;
      return;
    }
    const Frame& frame = *item.stack;
    const uint32_t floor = std::min(item.floor, frame.depth - 1);
    if (frame.most == kNotLooping) {
      go(frame.node, frame.below, floor);
    } else if (frame.depth <= item.floor) {  // a run of a body that read nothing is the same as no run
      work_.push_back({frame.node, frame.least, frame.most, floor, frame.below});
    }
  }

  const PushdownAutomaton& a_;
  States& out_;
  std::vector<Item> work_;
  std::unordered_multimap<size_t, Item> seen_;  // by node and shape
  HeldBytes held_;
};

// Leaves out the states that others cover, and merges those that differ in one counter.
void PushdownAutomaton::prune(std::vector<State>& states) const {
  std::unordered_map<size_t, std::vector<State>> groups;
  std::vector<size_t> order;
  for (State& state : states) {
    const size_t key = combine(StackOps::shape(state.stack), static_cast<size_t>(state.node));
    std::vector<State>& kept = groups[key];
    if (kept.empty()) order.push_back(key);
    uint64_t frames = 1;
    bool covered = false;
    for (size_t i = 0; i < kept.size() && !covered;) {
      ++frames;
      if (kept[i].node != state.node) {
        ++i;
        continue;
      }
      covered = StackOps::covers(kept[i].stack.get(), state.stack.get(), frames);
      if (covered) break;
      Stack both = StackOps::covers(state.stack.get(), kept[i].stack.get(), frames)
                       ? state.stack
                       : StackOps::merge(kept[i].stack, state.stack, frames);
      if (both == nullptr) {
        ++i;
        continue;
      }
      state.stack = std::move(both);
      kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(i));
      i = 0;  // what it takes in now may cover or touch those before
    }
    if (!covered) kept.push_back(std::move(state));
    budget_.charge(frames);
  }
  states.clear();
  for (const size_t key : order) {
    std::vector<State>& kept = groups[key];
    std::move(kept.begin(), kept.end(), std::back_inserter(states));
  }
}

PushdownAutomaton::States PushdownAutomaton::start(int rule) const {
  States states;
  Closure(*this, states).add(rules_[static_cast<size_t>(rule)], nullptr);
  prune(states.all);
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

bool PushdownAutomaton::reads_bytes(const States& states) const {
  return std::any_of(states.all.begin(), states.all.end(),
                     [&](const State& state) { return node(state.node).op == kBytes; });
}

std::vector<PushdownAutomaton::States> PushdownAutomaton::parts(const States& states) const {
  std::vector<States> result;
  std::unordered_multimap<size_t, size_t> known;  // indices in `result`, by group and shape
  for (const State& state : states.all) {
    const int32_t group = node(state.node).group;
    const size_t key = combine(StackOps::shape(state.stack), static_cast<size_t>(group));
    uint64_t frames = 1;
    const auto [begin, end] = known.equal_range(key);
    const auto mine = std::find_if(begin, end, [&](const auto& entry) {
      const State& first = result[entry.second].all[0];
      return node(first.node).group == group && StackOps::same(first.stack.get(), state.stack.get(), frames);
    });
    budget_.charge(frames);
    if (mine != end) {
      result[mine->second].all.push_back(state);
    } else {
      known.emplace(key, result.size());
      result.push_back({{state}, false});
    }
  }
  return result;
}

std::vector<int32_t> PushdownAutomaton::characters_key(const States& part) const {
  std::vector<int32_t> key;
  for (const State& state : part.all) key.push_back(state.node);
  std::sort(key.begin(), key.end());
  const int32_t group = part.all.empty() ? -1 : node(part.all[0].node).group;
  if (group < 0) return {-1, node(key[0]).op, node(key[0]).a};  // a node by itself
  const GroupOrigin& origin = groups_[static_cast<size_t>(group)];
  for (int32_t& one : key) one -= origin.first;
  key.push_back(origin.like);
  return key;
}

PushdownAutomaton::States PushdownAutomaton::united(const std::vector<States>& all) const {
  States result;
  for (const States& one : all) {
    result.all.insert(result.all.end(), one.all.begin(), one.all.end());
    result.complete |= one.complete;
  }
  budget_.charge(result.all.size());
  if (all.size() > 1) prune(result.all);
  return result;
}

ByteSet PushdownAutomaton::same_bytes(const States& states, uint8_t byte) const {
  ByteSet same = byte_range(0, 255);
  for (const State& state : states.all) {
    if (node(state.node).op != kBytes) continue;
    const ByteSet& set = sets_[static_cast<size_t>(node(state.node).a)];
    same &= set[byte] ? set : ~set;
  }
  return same;
}

PushdownAutomaton::States PushdownAutomaton::advance(const States& states, int input) const {
  States next;
  budget_.charge(states.all.size());
  Closure closure(*this, next);
  for (const State& state : states.all) {
    if (matches(node(state.node), input)) closure.add(node(state.node).b, state.stack);
  }
  if (next.all.size() > 1) prune(next.all);
  return next;
}

PushdownAutomaton::States PushdownAutomaton::clamp(const States& states, uint32_t limit) const {
  States result;
  result.complete = states.complete;
  const auto clamped = [&](const Frame& frame, uint32_t count) {
    const uint32_t above = limit + 1 + node(frame.node).slack;
    return count == kUnbounded ? count : std::min(count, above);
  };
  bool changed = false;
  for (const State& state : states.all) {
    std::vector<const Frame*> frames;
    bool large = false;
    for (const Frame* frame = state.stack.get(); frame != nullptr; frame = frame->below.get()) {
      frames.push_back(frame);
      large |= frame->most != kNotLooping &&
               (clamped(*frame, frame->least) != frame->least || clamped(*frame, frame->most) != frame->most);
    }
    budget_.charge(frames.size() * (large ? 10 : 1) + 1);
    result.all.push_back(state);
    if (!large) continue;
    changed = true;
    Stack stack;
    for (size_t i = frames.size(); i-- > 0;) {
      const Frame& frame = *frames[i];
      const uint32_t most = frame.most == kNotLooping ? kNotLooping : clamped(frame, frame.most);
      stack = StackOps::push(frame.node, clamped(frame, frame.least), most, stack);
    }
    result.all.back().stack = std::move(stack);
  }
  if (changed) prune(result.all);
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
