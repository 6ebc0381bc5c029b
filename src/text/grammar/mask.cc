#include "text/grammar/mask.h"

#include <algorithm>

namespace gemma4 {
namespace {

constexpr int32_t kUnknown = -1, kDead = -2;
// Past either limit all states and masks are dropped and built again. At the limits they take some 100 MB for a
// vocabulary of 262144.
constexpr size_t kDfaStatesMax = 50000, kMasksMax = 1500;

}  // namespace

std::shared_ptr<const TokenMasks::Mask> TokenMasks::mask(const PushdownAutomaton::States& states) {
  const MutexLock lock(mutex_);
  if (dfa_states_.size() > kDfaStatesMax || masks_ > kMasksMax) {
    dfa_states_.clear();
    numbers_.clear();
    masks_ = 0;
  }
  const int32_t state = find(automaton_.clamp(states, static_cast<uint32_t>(vocabulary_.longest)));
  if (!dfa_states_[state]->mask) {
    dfa_states_[state]->mask = make(state);
    ++masks_;
  }
  return dfa_states_[state]->mask;
}

int32_t TokenMasks::find(PushdownAutomaton::States states) {
  const auto [found, is_new] =
      numbers_.try_emplace(PushdownAutomaton::key(states), static_cast<int32_t>(dfa_states_.size()));
  if (is_new) {
    dfa_states_.push_back(std::make_unique<DfaState>());
    dfa_states_.back()->states = std::move(states);
    dfa_states_.back()->next.fill(kUnknown);
  }
  return found->second;
}

int32_t TokenMasks::next(int32_t state, uint8_t byte) {
  const int32_t known = dfa_states_[state]->next[byte];
  if (known != kUnknown) return known;
  PushdownAutomaton::States states = automaton_.advance(dfa_states_[state]->states, byte);
  const int32_t result = states.dead() ? kDead : find(std::move(states));
  dfa_states_[state]->next[byte] = result;
  return result;
}

std::shared_ptr<const TokenMasks::Mask> TokenMasks::make(int32_t start) {
  Mask mask(static_cast<size_t>(vocabulary_.vocab_size + 31) / 32, 0);
  const auto allow = [&](int32_t id) { mask[static_cast<size_t>(id) / 32] |= uint32_t{1} << (id % 32); };
  std::vector<int32_t> path(static_cast<size_t>(vocabulary_.longest) + 1, start);  // the state after each byte
  const auto nodes = static_cast<int32_t>(vocabulary_.nodes.size()) - 1;
  for (int32_t i = 0; i < nodes;) {
    const auto& node = vocabulary_.nodes[i];
    const int32_t depth = vocabulary_.depths[i];
    const int32_t state = next(path[depth], node.byte);
    if (state == kDead) {
      i = node.end;
      continue;
    }
    path[depth + 1] = state;
    for (int32_t t = node.token_begin; t < vocabulary_.nodes[i + 1].token_begin; ++t) allow(vocabulary_.tokens[t]);
    ++i;
  }
  const PushdownAutomaton::States& states = dfa_states_[start]->states;
  for (int symbol = kQuote; symbol < kInputsEnd; ++symbol) {
    const int32_t id = vocabulary_.symbols[symbol - kQuote];
    if (id >= 0 && automaton_.reads(states, symbol)) allow(id);
  }
  // If no token can follow, only an end token remains.
  const bool stuck = std::all_of(mask.begin(), mask.end(), [](uint32_t word) { return word == 0; });
  if (states.complete || stuck) {
    for (const int32_t id : end_ids_) allow(id);
  }
  return std::make_shared<const Mask>(std::move(mask));
}

}  // namespace gemma4
