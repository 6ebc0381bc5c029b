#include "text/grammar/mask.h"

#include <algorithm>

namespace gemma4 {
namespace {

constexpr int32_t kUnknown = -1, kDead = -2;
// Where either is passed all is forgotten and begins anew: some 100 MB for a vocabulary of 262144.
constexpr size_t kStatesMax = 50000, kMasksMax = 1500;

}  // namespace

std::shared_ptr<const MaskMaker::Mask> MaskMaker::mask(const Automaton::Threads& threads) {
  const std::lock_guard lock(mutex_);
  if (states_.size() > kStatesMax || masks_ > kMasksMax) {
    states_.clear();
    numbers_.clear();
    masks_ = 0;
  }
  const int32_t state = find(automaton_.clamp(threads, static_cast<uint32_t>(vocabulary_.longest)));
  if (!states_[state]->mask) {
    states_[state]->mask = make(state);
    ++masks_;
  }
  return states_[state]->mask;
}

int32_t MaskMaker::find(Automaton::Threads threads) {
  const auto [found, is_new] = numbers_.try_emplace(Automaton::key(threads), static_cast<int32_t>(states_.size()));
  if (is_new) {
    states_.push_back(std::make_unique<State>());
    states_.back()->threads = std::move(threads);
    states_.back()->next.fill(kUnknown);
  }
  return found->second;
}

int32_t MaskMaker::next(int32_t state, uint8_t byte) {
  const int32_t known = states_[state]->next[byte];
  if (known != kUnknown) return known;
  Automaton::Threads threads = automaton_.step(states_[state]->threads, byte);
  const int32_t result = threads.dead() ? kDead : find(std::move(threads));
  states_[state]->next[byte] = result;
  return result;
}

std::shared_ptr<const MaskMaker::Mask> MaskMaker::make(int32_t start) {
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
  const Automaton::Threads& threads = states_[start]->threads;
  for (int symbol = kQuote; symbol < kInputsEnd; ++symbol) {
    const int32_t id = vocabulary_.symbols[symbol - kQuote];
    if (id >= 0 && automaton_.reads(threads, symbol)) allow(id);
  }
  // Where nothing can follow, ending is all that is left.
  const bool stuck = std::all_of(mask.begin(), mask.end(), [](uint32_t word) { return word == 0; });
  if (threads.complete || stuck) {
    for (const int32_t id : end_ids_) allow(id);
  }
  return std::make_shared<const Mask>(std::move(mask));
}

}  // namespace gemma4
