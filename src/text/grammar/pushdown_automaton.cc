#include "text/grammar/pushdown_automaton.h"

#include <algorithm>

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

int PushdownAutomaton::counted(int body, uint32_t least, uint32_t most, uint32_t slack, int next) {
  return add({kCount, body, next, least, most, 0, slack});
}

int PushdownAutomaton::tick(uint32_t shortest, uint32_t longest, int next) {
  return add({kTick, 0, next, shortest, longest});
}

int PushdownAutomaton::count_end() { return add({kCountEnd}); }
int PushdownAutomaton::nothing() { return bytes(ByteSet(), finish()); }

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

}  // namespace gemma4
