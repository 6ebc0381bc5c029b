// Whether a finished automaton can be walked: no rule calls itself before it reads something, and every choice comes to
// an end.
#include <algorithm>
#include <unordered_set>

#include "base/check.h"
#include "text/grammar/pushdown_automaton.h"

namespace gemma4 {
namespace {

constexpr uint64_t kLookSteps = 10;  // of a WorkBudget, for a node that is looked at

struct RuleCall {
  int rule;
  bool last;  // nothing follows it in the calling rule
};

// The components of a graph in which each node reaches each other (Kosaraju's algorithm): [nodes] their numbers.
std::vector<int> components(const std::vector<std::vector<RuleCall>>& calls) {
  const size_t count = calls.size();
  std::vector<std::vector<int>> callers(count);
  for (size_t rule = 0; rule < count; ++rule) {
    for (const RuleCall& call : calls[rule]) callers[static_cast<size_t>(call.rule)].push_back(static_cast<int>(rule));
  }
  std::vector<int> order, component(count, -1);
  std::vector<bool> seen(count);
  for (size_t root = 0; root < count; ++root) {
    std::vector<std::pair<size_t, size_t>> path;  // a rule, and how many of its calls were followed
    if (!seen[root]) path.emplace_back(root, 0), seen[root] = true;
    while (!path.empty()) {
      auto& [rule, at] = path.back();
      if (at == calls[rule].size()) {
        order.push_back(static_cast<int>(rule));
        path.pop_back();
        continue;
      }
      const auto callee = static_cast<size_t>(calls[rule][at++].rule);
      if (!seen[callee]) seen[callee] = true, path.emplace_back(callee, 0);
    }
  }
  for (size_t i = order.size(); i-- > 0;) {
    std::vector<int> work = {order[i]};
    while (!work.empty()) {
      const auto at = static_cast<size_t>(work.back());
      work.pop_back();
      if (component[at] >= 0) continue;
      component[at] = order[i];
      work.insert(work.end(), callers[at].begin(), callers[at].end());
    }
  }
  return component;
}

}  // namespace

void PushdownAutomaton::check(int start, const Mark& from) {
  check_recursion(from);
  check_productive(start, from);
}

// From the ends backwards: a node may be empty if it leads to the end of its rule without an input.
std::vector<bool> PushdownAutomaton::rules_that_may_be_empty(const Mark& from) const {
  const size_t count = nodes_.size() - from.nodes;  // vectors of nodes begin at from.nodes
  std::vector<std::vector<int32_t>> users(count), callers(rules_.size()), starts(count);
  std::vector<bool> done(count), empty(rules_.size());
  std::vector<int32_t> work;
  budget_.charge(count * kLookSteps);
  const auto use = [&](int32_t used, size_t user) {
    users[static_cast<size_t>(used) - from.nodes].push_back(static_cast<int32_t>(user));
  };
  for (size_t i = from.nodes; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (node.op == kFinish || node.op == kCountEnd) work.push_back(static_cast<int32_t>(i));
    if (node.op == kSplit) {
      for (const int choice : choices_[static_cast<size_t>(node.a)]) use(choice, i);
    }
    if (node.op == kCall || node.op == kLoop || node.op == kCount) use(node.b, i);
    if (node.op == kCount || node.op == kLoop) use(node.a, i);
    if (node.op == kCall) callers[static_cast<size_t>(node.a)].push_back(static_cast<int32_t>(i));
  }
  for (size_t rule = from.rules; rule < rules_.size(); ++rule) {
    starts[static_cast<size_t>(rules_[rule]) - from.nodes].push_back(static_cast<int32_t>(rule));
  }
  const auto may = [&](const Node& node) {
    const auto is_done = [&](int32_t at) { return static_cast<bool>(done[static_cast<size_t>(at) - from.nodes]); };
    if (node.op == kCall) return is_done(node.b) && empty[static_cast<size_t>(node.a)];
    if (node.op == kLoop) return is_done(node.b) && (node.least == 0 || is_done(node.a));
    if (node.op == kCount) return is_done(node.b) && is_done(node.a) && node.least == 0;
    return true;
  };
  while (!work.empty()) {
    const auto at = static_cast<size_t>(work.back());
    const size_t index = at - from.nodes;
    work.pop_back();
    if (done[index] || !may(nodes_[at])) continue;
    done[index] = true;
    work.insert(work.end(), users[index].begin(), users[index].end());
    for (const int32_t rule : starts[index]) {
      empty[static_cast<size_t>(rule)] = true;
      const auto& all = callers[static_cast<size_t>(rule)];
      work.insert(work.end(), all.begin(), all.end());
    }
  }
  return empty;
}

// Collects the rules that each rule may call before it reads anything.
void PushdownAutomaton::check_recursion(const Mark& from) const {
  const std::vector<bool> empty = rules_that_may_be_empty(from);
  std::vector<std::vector<RuleCall>> calls(rules_.size());
  for (size_t rule = from.rules; rule < rules_.size(); ++rule) {
    std::vector<int> work = {rules_[rule]};
    std::unordered_set<int> seen;
    while (!work.empty()) {
      const int at = work.back();
      work.pop_back();
      if (!seen.insert(at).second) continue;
      budget_.charge(kLookSteps);
      const Node& node = nodes_[static_cast<size_t>(at)];
      if (node.op == kSplit) {
        for (const int choice : choices_[static_cast<size_t>(node.a)]) work.push_back(choice);
      } else if (node.op == kCall) {
        calls[rule].push_back({node.a, nodes_[static_cast<size_t>(node.b)].op == kFinish});
        if (empty[static_cast<size_t>(node.a)]) work.push_back(node.b);
      } else if (node.op == kLoop || node.op == kCount) {
        work.push_back(node.a);
        if (node.least == 0) work.push_back(node.b);
      }
    }
  }
  const std::vector<int> component = components(calls);
  for (size_t rule = 0; rule < rules_.size(); ++rule) {
    for (const RuleCall& call : calls[rule]) {
      if (!call.last && component[rule] == component[static_cast<size_t>(call.rule)]) {
        throw LeftRecursion(
            "a rule of the grammar begins with itself by way of others (left recursion): write it as a repeat",
            static_cast<int>(rule));
      }
    }
  }
}

// Marks the nodes from which a text can come to the end of its rule, from the ends backwards.
void PushdownAutomaton::check_productive(int start, const Mark& from) {
  const size_t count = nodes_.size() - from.nodes;  // vectors of nodes begin at from.nodes
  std::vector<std::vector<int32_t>> users(count), callers(rules_.size()), starts(count);
  const auto use = [&](int32_t used, size_t user) {
    users[static_cast<size_t>(used) - from.nodes].push_back(static_cast<int32_t>(user));
  };
  std::vector<int32_t> work;
  budget_.charge(count * kLookSteps);
  for (size_t i = from.nodes; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (node.op == kFinish || node.op == kCountEnd) work.push_back(static_cast<int32_t>(i));
    if (node.op == kSplit) {
      for (const int choice : choices_[static_cast<size_t>(node.a)]) use(choice, i);
    } else if (node.op != kFinish && node.op != kCountEnd) {
      use(node.b, i);
      if (node.op == kLoop || node.op == kCount) use(node.a, i);
      if (node.op == kCall) callers[static_cast<size_t>(node.a)].push_back(static_cast<int32_t>(i));
    }
  }
  for (size_t rule = from.rules; rule < rules_.size(); ++rule)
    starts[static_cast<size_t>(rules_[rule]) - from.nodes].push_back(static_cast<int32_t>(rule));
  std::vector<bool> done(count), rule_done(rules_.size());
  const auto is_done = [&](int32_t at) { return static_cast<bool>(done[static_cast<size_t>(at) - from.nodes]); };
  const auto productive = [&](const Node& node) {
    // These are looked at only once something they need is done.
    if (node.op == kFinish || node.op == kCountEnd || node.op == kSplit) return true;
    if (!is_done(node.b)) return false;
    if (node.op == kBytes) return sets_[static_cast<size_t>(node.a)].any();
    if (node.op == kCall) return static_cast<bool>(rule_done[static_cast<size_t>(node.a)]);
    if (node.op == kCount) return is_done(node.a);
    return node.op == kSymbol || node.op == kTick || node.least == 0 || is_done(node.a);
  };
  while (!work.empty()) {
    const auto at = static_cast<size_t>(work.back());
    const size_t index = at - from.nodes;
    work.pop_back();
    if (done[index] || !productive(nodes_[at])) continue;
    done[index] = true;
    work.insert(work.end(), users[index].begin(), users[index].end());
    for (const int32_t rule : starts[index]) {
      rule_done[static_cast<size_t>(rule)] = true;
      work.insert(work.end(), callers[static_cast<size_t>(rule)].begin(), callers[static_cast<size_t>(rule)].end());
    }
  }
  if (!rule_done[static_cast<size_t>(start)]) {
    std::vector<int> endless;
    for (size_t rule = from.rules; rule < rule_done.size(); ++rule) {
      if (!rule_done[rule]) endless.push_back(static_cast<int>(rule));
    }
    throw EndlessGrammar("nothing that the grammar allows comes to an end", std::move(endless));
  }
  for (size_t list = from.choices; list < choices_.size(); ++list) {
    std::erase_if(choices_[list], [&](int choice) { return !is_done(choice); });
  }
  for (size_t i = from.nodes; i < nodes_.size(); ++i) {
    if (nodes_[i].op == kLoop && !is_done(nodes_[i].a)) nodes_[i].most = 0;
  }
}

}  // namespace gemma4
