// Patterns as nodes of the automaton: of an expression without assertions, its own structure, with counters for
// repeats; of anything else, the states of its DFA.
#include <algorithm>

#include "base/check.h"
#include "text/grammar/lexical.h"

namespace gemma4 {
namespace {

// Of each state of a DFA: the numbers of characters that may come until a string ends.
struct Distances {
  std::vector<uint32_t> shortest, longest;  // longest may be kNoLimit
  bool gaps = false;                        // not all numbers in between
};

using DfaStates = std::vector<StringSet::Dfa::State>;

// Takes away, again and again, the states that lead only to ones taken away: what is left leads to a cycle.
void find_longest(const DfaStates& states, std::vector<uint32_t>& longest) {
  const size_t count = states.size();
  std::vector<std::vector<size_t>> users(count);
  std::vector<size_t> left(count), work;
  for (size_t i = 0; i < count; ++i) {
    left[i] = states[i].next.size();
    for (const auto& [ranges, to] : states[i].next) users[static_cast<size_t>(to)].push_back(i);
    if (left[i] == 0) work.push_back(i);
  }
  longest.assign(count, kNoLimit);
  while (!work.empty()) {
    const size_t at = work.back();
    work.pop_back();
    longest[at] = 0;
    for (const auto& [ranges, to] : states[at].next) {
      longest[at] = std::max(longest[at], longest[static_cast<size_t>(to)] + 1);
    }
    for (const size_t user : users[at]) {
      if (--left[user] == 0) work.push_back(user);
    }
  }
}

Distances distances(const DfaStates& states, WorkBudget& budget) {
  constexpr size_t kLengthsMax = 300;
  Distances result;
  find_longest(states, result.longest);
  const size_t count = states.size();
  result.shortest.assign(count, kNoLimit);
  std::vector<bool> ends(count), after(count);  // whether a string may end after this many characters
  for (size_t i = 0; i < count; ++i) ends[i] = states[i].accepts;
  for (uint32_t length = 0; length <= std::min(2 * count + 2, kLengthsMax); ++length) {
    budget.charge(count);
    for (size_t i = 0; i < count; ++i) {
      if (ends[i]) result.shortest[i] = std::min(result.shortest[i], length);
      if (!ends[i] && length > result.shortest[i] && length <= result.longest[i]) result.gaps = true;
      after[i] = std::any_of(states[i].next.begin(), states[i].next.end(),
                             [&](const auto& edge) { return ends[static_cast<size_t>(edge.second)]; });
    }
    std::swap(ends, after);
  }
  // A string longer than looked at: counted as a gap, since nothing is known of it.
  result.gaps |= std::find(result.shortest.begin(), result.shortest.end(), kNoLimit) != result.shortest.end();
  return result;
}

}  // namespace

int LexicalGrammar::regex(const Regex& whole, int next) {
  switch (whole.type) {
    case Regex::kCharacters:
      return characters(whole.ranges, next);
    case Regex::kSequence:
      for (size_t i = whole.operands.size(); i-- > 0;) next = regex(whole.operands[i], next);
      return next;
    case Regex::kChoice: {
      std::vector<int> choices;
      for (const Regex& operand : whole.operands) choices.push_back(regex(operand, next));
      return a_.split(std::move(choices));
    }
    case Regex::kRepeat:
      if (whole.least == 0 && whole.most == kNoLimit) {
        const int again = a_.reserve();
        a_.set(again, a_.split({next, regex(whole.operands[0], again)}));
        return again;
      }
      return a_.loop(regex(whole.operands[0], a_.finish()), whole.least, whole.most, next);
    default:
      CHECK(false);  // as_whole_string() takes no assertions
  }
  return next;
}

int LexicalGrammar::strings_of(const StringSet::Dfa& dfa, uint32_t least, uint32_t most, int next) {
  if (dfa.states.empty()) return a_.nothing();
  const bool counted = least > 0 || most != kNoLimit;
  Distances far;
  if (counted) {
    far = distances(dfa.states, a_.budget());
    if (far.gaps) return -1;
    if (far.shortest[0] > most || far.longest[0] < least) return a_.nothing();
  }
  const int end = counted ? a_.count_end() : next;
  std::vector<int> nodes;
  for (size_t i = 0; i < dfa.states.size(); ++i) nodes.push_back(a_.reserve());
  for (size_t i = 0; i < dfa.states.size(); ++i) {
    std::vector<int> choices;
    if (dfa.states[i].accepts) choices.push_back(end);
    for (const auto& [ranges, target] : dfa.states[i].next) {
      const auto to = static_cast<size_t>(target);
      const int read = characters(ranges, nodes[to]);
      // Before the character: otherwise its first byte might be written where the rest may not follow.
      choices.push_back(counted ? a_.tick(far.shortest[to], far.longest[to], read) : read);
    }
    a_.set(nodes[i], a_.split(std::move(choices)));
  }
  if (!counted) return nodes[0];
  uint32_t slack = 0;
  for (size_t i = 0; i < nodes.size(); ++i) {
    slack = std::max({slack, far.shortest[i], far.longest[i] == kNoLimit ? 0 : far.longest[i]});
  }
  return a_.counted(nodes[0], least, most, slack, next);
}

}  // namespace gemma4
