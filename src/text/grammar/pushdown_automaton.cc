#include "text/grammar/pushdown_automaton.h"

#include <algorithm>
#include <unordered_set>

#include "base/check.h"

namespace gemma4 {
namespace {

constexpr size_t kNodesMax = 1 << 20;
constexpr uint64_t kNodeSteps = 10, kNodeBytes = 64;

}  // namespace

ByteSet byte_range(int first, int last) {
  ByteSet set;
  for (int b = first; b <= last; ++b) set.set(static_cast<size_t>(b));
  return set;
}

int PushdownAutomaton::add(Node node) {
  if (nodes_.size() >= kNodesMax) throw BudgetError("the schema is too large");
  budget_.charge(kNodeSteps);
  held_.add(kNodeBytes);
  node.group = group_ >= 0 ? group_ : ~static_cast<int32_t>(nodes_.size());
  nodes_.push_back(node);
  return static_cast<int>(nodes_.size()) - 1;
}

int PushdownAutomaton::bytes(const ByteSet& set, int next) {
  const auto [found, is_new] = set_numbers_.try_emplace(set, static_cast<int32_t>(sets_.size()));
  if (is_new) sets_.push_back(set);
  return add({kBytes, found->second, next});
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
  // The path of the last sequence: what may follow each of its inputs. Its end is turned into nodes once it is known
  // that no later sequence shares it.
  struct Open {
    int input;
    std::vector<int> choices;
  };
  std::vector<Open> open(1);
  const auto close_to = [&](size_t depth) {
    while (open.size() > depth + 1) {
      const int input = open.back().input, rest = split(std::move(open.back().choices));
      open.pop_back();
      open.back().choices.push_back(input < 256 ? byte(static_cast<char>(input), rest)
                                                : symbol(static_cast<GrammarSymbol>(input), rest));
    }
  };
  std::vector<int> none;
  const std::vector<int>* last = nullptr;
  for (const std::vector<int>& sequence : sequences) {
    if (last != nullptr && *last == sequence) continue;
    const std::vector<int>& before = last ? *last : none;
    const auto common = std::mismatch(before.begin(), before.end(), sequence.begin(), sequence.end()).first;
    const auto shared = static_cast<size_t>(common - before.begin());
    close_to(shared);
    for (size_t i = shared; i < sequence.size(); ++i) open.push_back({sequence[i], {}});
    open.back().choices.push_back(next);
    last = &sequence;
  }
  close_to(0);
  return split(std::move(open[0].choices));
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

void PushdownAutomaton::roll_back(const Mark& mark) {
  nodes_.resize(mark.nodes);
  choices_.resize(mark.choices);
  rules_.resize(mark.rules);
}

void PushdownAutomaton::check(int start, const Mark& from) const {
  check_recursion(from);
  check_productive(start, from);
}

void PushdownAutomaton::check_recursion(const Mark& from) const {
  // Collects the rules that each rule may call before it reads anything. In the graphs of schemas no loop or call that
  // may match nothing precedes a call, so looking at the first node of each path is enough.
  std::vector<std::vector<int>> calls(rules_.size());
  for (size_t rule = from.rules; rule < rules_.size(); ++rule) {
    std::vector<int> work = {rules_[rule]};
    std::unordered_set<int> seen;
    while (!work.empty()) {
      const int at = work.back();
      work.pop_back();
      if (!seen.insert(at).second) continue;
      budget_.charge(kNodeSteps);
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
  for (size_t root = from.rules; root < rules_.size(); ++root) {
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

// Marks the nodes from which a text can come to the end of its rule, from the ends backwards.
void PushdownAutomaton::check_productive(int start, const Mark& from) const {
  const size_t count = nodes_.size() - from.nodes;  // vectors of nodes begin at from.nodes
  std::vector<std::vector<int32_t>> users(count), callers(rules_.size()), starts(count);
  const auto use = [&](int32_t used, size_t user) {
    users[static_cast<size_t>(used) - from.nodes].push_back(static_cast<int32_t>(user));
  };
  std::vector<int32_t> work;
  budget_.charge(count * kNodeSteps);
  for (size_t i = from.nodes; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (node.op == kFinish) work.push_back(static_cast<int32_t>(i));
    if (node.op == kSplit) {
      for (const int choice : choices_[static_cast<size_t>(node.a)]) use(choice, i);
    } else if (node.op != kFinish) {
      use(node.b, i);
      if (node.op == kLoop) use(node.a, i);
      if (node.op == kCall) callers[static_cast<size_t>(node.a)].push_back(static_cast<int32_t>(i));
    }
  }
  for (size_t rule = from.rules; rule < rules_.size(); ++rule)
    starts[static_cast<size_t>(rules_[rule]) - from.nodes].push_back(static_cast<int32_t>(rule));
  std::vector<bool> done(count), rule_done(rules_.size());
  const auto is_done = [&](int32_t node) { return done[static_cast<size_t>(node) - from.nodes]; };
  const auto productive = [&](const Node& node) {
    if (node.op == kFinish || node.op == kSplit) return true;  // looked at only once something it needs is done
    if (!is_done(node.b)) return false;
    if (node.op == kBytes) return sets_[static_cast<size_t>(node.a)].any();
    if (node.op == kCall) return static_cast<bool>(rule_done[static_cast<size_t>(node.a)]);
    return node.op == kSymbol || node.least == 0 || is_done(node.a);
  };
  while (!work.empty()) {
    const auto at = static_cast<size_t>(work.back());
    work.pop_back();
    const size_t index = at - from.nodes;
    if (done[index] || !productive(nodes_[at])) continue;
    done[index] = true;
    work.insert(work.end(), users[index].begin(), users[index].end());
    for (const int32_t rule : starts[index]) {
      rule_done[static_cast<size_t>(rule)] = true;
      work.insert(work.end(), callers[static_cast<size_t>(rule)].begin(), callers[static_cast<size_t>(rule)].end());
    }
  }
  if (!rule_done[static_cast<size_t>(start)]) throw Error("a schema allows no value that comes to an end");
}

}  // namespace gemma4
