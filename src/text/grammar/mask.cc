#include "text/grammar/mask.h"

#include <algorithm>
#include <unordered_set>

namespace gemma4 {
namespace {

struct Bytes {
  int first, last;
};

// Between two masks all states and masks are dropped, and built again, if they take more than this.
constexpr size_t kHeldMax = 24 << 20;
// New sets of states in one walk, and their bytes; past that, masks are made by parts.
constexpr size_t kNewSetsMax = 3000, kNewBytesMax = 16 << 20;
constexpr int64_t kStepsAtOnce = 256;                                  // nodes of the trie that are charged together
constexpr Bytes kPlainAscii[] = {{' ', '!'}, {'#', '['}, {']', '~'}};  // without quote and backslash

// UTF-8 but for ASCII and for U+2028 and U+2029, which the `.` of a pattern does not match.
// Unicode 15, table 3-7.
const std::vector<std::vector<Bytes>>& plain_sequences() {
  constexpr Bytes kTail{0x80, 0xbf};
  static const std::vector<std::vector<Bytes>> kSequences = {{{0xc2, 0xdf}, kTail},
                                                             {{0xe0, 0xe0}, {0xa0, 0xbf}, kTail},
                                                             {{0xe1, 0xe1}, kTail, kTail},
                                                             {{0xe2, 0xe2}, {0x80, 0x80}, {0x80, 0xa7}},
                                                             {{0xe2, 0xe2}, {0x80, 0x80}, {0xaa, 0xbf}},
                                                             {{0xe2, 0xe2}, {0x81, 0xbf}, kTail},
                                                             {{0xe3, 0xec}, kTail, kTail},
                                                             {{0xed, 0xed}, {0x80, 0x9f}, kTail},
                                                             {{0xee, 0xef}, kTail, kTail},
                                                             {{0xf0, 0xf0}, {0x90, 0xbf}, kTail, kTail},
                                                             {{0xf1, 0xf3}, kTail, kTail, kTail},
                                                             {{0xf4, 0xf4}, {0x80, 0x8f}, kTail, kTail}};
  return kSequences;
}

// Adds to a set that is expected to be tiny; false where it is not.
bool insert(std::vector<int32_t>& set, int32_t value) {
  constexpr size_t kMax = 8;
  const auto at = std::lower_bound(set.begin(), set.end(), value);
  if (at != set.end() && *at == value) return true;
  if (set.size() >= kMax) return false;
  set.insert(at, value);
  return true;
}

// The tokens of a trie in the order of its nodes, as bits.
class TokenSet {
 public:
  explicit TokenSet(size_t tokens) : words_((tokens + 63) / 64, 0) {}
  void add(int32_t token) { words_[static_cast<size_t>(token) / 64] |= uint64_t{1} << (token % 64); }
  bool has(int32_t token) const { return words_[static_cast<size_t>(token) / 64] >> (token % 64) & 1; }
  bool has_all(int32_t begin, int32_t end) const {
    for (; begin < end && begin % 64 != 0; ++begin) {
      if (!has(begin)) return false;
    }
    for (; begin + 64 <= end; begin += 64) {
      if (words_[static_cast<size_t>(begin) / 64] != ~uint64_t{0}) return false;
    }
    for (; begin < end; ++begin) {
      if (!has(begin)) return false;
    }
    return true;
  }

 private:
  std::vector<uint64_t> words_;
};

void allow(TokenMasks::Mask& mask, int32_t id) { mask[static_cast<size_t>(id) / 32] |= uint32_t{1} << (id % 32); }

void unite(TokenMasks::Mask& mask, const TokenMasks::Mask& other) {
  for (size_t i = 0; i < mask.size(); ++i) mask[i] |= other[i];
}

}  // namespace

std::shared_ptr<const TokenMasks::Mask> TokenMasks::mask(const PushdownAutomaton::States& states) {
  const MutexLock lock(mutex_);
  if (held_.bytes() > kHeldMax) {
    dfa_states_.clear();
    numbers_.clear();
    held_.release();
  }
  const int32_t state = find(automaton_.clamp(states, static_cast<uint32_t>(vocabulary_.longest)));
  if (!at(state).mask) at(state).mask = make(state);
  return at(state).mask;
}

std::shared_ptr<const TokenMasks::Mask> TokenMasks::keep(Mask mask) {
  held_.add(mask.size() * sizeof(mask[0]));
  return std::make_shared<const Mask>(std::move(mask));
}

int32_t TokenMasks::find(PushdownAutomaton::States states) {
  std::string key = PushdownAutomaton::key(states);
  budget_.charge(20 + key.size() / 4);
  if (const auto found = numbers_.find(key); found != numbers_.end()) return found->second;
  budget_.charge(100);
  held_.add(sizeof(DfaState) + 2 * key.size() + states.all.size() * sizeof(states.all[0]) * 4 + 100);
  const auto number = static_cast<int32_t>(dfa_states_.size());
  dfa_states_.push_back(std::make_unique<DfaState>());
  at(number).states = std::move(states);
  at(number).next.fill(kUnknown);
  numbers_.emplace(std::move(key), number);
  return number;
}

int32_t TokenMasks::next(int32_t state, uint8_t byte) {
  const int32_t known = at(state).next[byte];
  if (known != kUnknown) return known;
  PushdownAutomaton::States states = automaton_.advance(at(state).states, byte);
  const int32_t result = states.dead() ? kDead : find(std::move(states));
  const ByteSet same = automaton_.same_bytes(at(state).states, byte);
  for (size_t i = 0; i < 256; ++i) {
    if (same[i]) at(state).next[i] = result;
  }
  return result;
}

// Replaces `states` with those after one byte of first .. last. False where a byte is forbidden in one of them, or
// where there are many.
bool TokenMasks::follow(std::vector<int32_t>& states, int first, int last) {
  std::vector<int32_t> after;
  budget_.charge(states.size() * static_cast<size_t>(last - first + 1));
  for (const int32_t state : states) {
    for (int byte = first; byte <= last; ++byte) {
      const int32_t to = next(state, static_cast<uint8_t>(byte));
      if (to == kDead || !insert(after, to)) return false;
    }
  }
  states = std::move(after);
  return true;
}

// Whether `state` allows each plain character. Adds the states after them to `after`.
bool TokenMasks::plain_characters(int32_t state, std::vector<int32_t>& after) {
  const auto keep_all = [&](const std::vector<int32_t>& states) {
    return std::all_of(states.begin(), states.end(), [&](int32_t to) { return insert(after, to); });
  };
  for (const Bytes& bytes : kPlainAscii) {
    std::vector<int32_t> states = {state};
    if (!follow(states, bytes.first, bytes.last) || !keep_all(states)) return false;
  }
  for (const std::vector<Bytes>& sequence : plain_sequences()) {
    std::vector<int32_t> states = {state};
    for (const Bytes& bytes : sequence) {
      if (!follow(states, bytes.first, bytes.last)) return false;
    }
    if (!keep_all(states)) return false;
  }
  return true;
}

// Whether each of these bytes leads `state` to parts among which `part` is.
bool TokenMasks::leads_back(int32_t state, int first, int last, int32_t part) {
  int32_t before = kUnknown;
  for (int byte = first; byte <= last; ++byte) {
    const int32_t to = next(state, static_cast<uint8_t>(byte));
    if (to == std::exchange(before, to)) continue;
    if (to == kDead) return false;
    const std::vector<int32_t>& all = parts(to);
    if (std::find(all.begin(), all.end(), part) == all.end()) return false;
  }
  return true;
}

// As keeps_plain(), computed anew.
bool TokenMasks::every_plain_leads_back(int32_t part) {
  for (const Bytes& bytes : kPlainAscii) {
    if (!leads_back(part, bytes.first, bytes.last, part)) return false;
  }
  for (const std::vector<Bytes>& sequence : plain_sequences()) {
    std::vector<int32_t> states = {part};
    for (size_t i = 0; i + 1 < sequence.size(); ++i) {
      if (!follow(states, sequence[i].first, sequence[i].last)) return false;
    }
    for (const int32_t to : states) {
      if (!leads_back(to, sequence.back().first, sequence.back().last, part)) return false;
    }
  }
  return true;
}

// Whether a part is among those that each plain character leads it to, as that of `.*` is.
bool TokenMasks::keeps_plain(int32_t part) {
  if (at(part).keeps_plain) return *at(part).keeps_plain;
  budget_.charge(200);
  const bool result = every_plain_leads_back(part);
  at(part).keeps_plain = result;
  return result;
}

// Whether no plain character may come.
bool TokenMasks::no_plain(int32_t state) {
  budget_.charge(256);
  for (int byte = 0x20; byte < 0x100; ++byte) {
    const bool plain = byte != '"' && byte != '\\' && byte != 0x7f;
    if (plain && next(state, static_cast<uint8_t>(byte)) != kDead) return false;
  }
  return true;
}

// The plain tokens that may come are those of up to so many characters. -1, which is always safe: that is not so, or it
// takes too long to tell; the tokens are then looked at one by one.
int TokenMasks::plain_limit(int32_t state) {
  const std::vector<int32_t>& all = parts(state);
  for (const int32_t part : all) {
    if (keeps_plain(part)) return vocabulary_.plain_longest;
  }
  std::vector<int32_t> states = {state};  // after each number of characters
  for (int i = 0; i < vocabulary_.plain_longest; ++i) {
    std::vector<int32_t> after;
    for (const int32_t one : states) {
      if (plain_characters(one, after)) continue;
      for (const int32_t at : states) {
        if (!no_plain(at)) return -1;
      }
      return i;
    }
    if (after == states) break;
    states = std::move(after);
  }
  return vocabulary_.plain_longest;
}

// Adds the tokens of `trie` that may come. False where that takes too many new sets of states.
bool TokenMasks::walk(const Trie& trie, int32_t start, Mask& mask) {
  const size_t sets = dfa_states_.size(), bytes = held_.bytes();
  std::vector<int32_t> path(static_cast<size_t>(vocabulary_.longest) + 1, start);  // the state after each byte
  const auto nodes = static_cast<int32_t>(trie.nodes.size()) - 1;
  int64_t steps = 0;
  for (int32_t i = 0; i < nodes;) {
    if (++steps % kStepsAtOnce == 0) {
      budget_.charge(kStepsAtOnce);
      if (dfa_states_.size() - sets > kNewSetsMax || held_.bytes() - bytes > kNewBytesMax) return false;
    }
    const auto& node = trie.nodes[static_cast<size_t>(i)];
    const int32_t depth = trie.depths[static_cast<size_t>(i)];
    const int32_t state = next(path[static_cast<size_t>(depth)], node.byte);
    if (state == kDead) {
      i = node.end;
      continue;
    }
    path[static_cast<size_t>(depth) + 1] = state;
    const int32_t end = trie.nodes[static_cast<size_t>(i) + 1].token_begin;
    for (int32_t t = node.token_begin; t < end; ++t) allow(mask, trie.tokens[static_cast<size_t>(t)]);
    ++i;
  }
  budget_.charge(static_cast<uint64_t>(steps % kStepsAtOnce));
  return true;
}

const std::vector<int32_t>& TokenMasks::parts(int32_t state) {
  if (at(state).parts.empty()) {
    std::vector<int32_t> numbers;
    for (PushdownAutomaton::States& part : automaton_.parts(at(state).states)) numbers.push_back(find(std::move(part)));
    held_.add(numbers.size() * sizeof(numbers[0]));
    at(state).parts = std::move(numbers);
  }
  return at(state).parts;
}

// The tokens that may come in one part. The trie is walked part by part: a branch is left out where all its tokens are
// allowed already, and where it was walked from the same part before. A part that leads to itself comes first, because
// it often allows all that the others do.
std::shared_ptr<const TokenMasks::Mask> TokenMasks::mask_of_part(int32_t start) {
  if (at(start).bytes) return at(start).bytes;
  Mask mask(static_cast<size_t>(vocabulary_.vocab_size + 31) / 32, 0);
  const int limit = plain_limit(start);
  const bool plain = limit >= 0;
  if (plain) mask = vocabulary_.plain[static_cast<size_t>(limit)];
  struct Visit {
    int32_t node, part;
  };
  const Trie& trie = plain ? vocabulary_.others : vocabulary_.all;
  const auto tokens_from = [&](int32_t node) { return trie.nodes[static_cast<size_t>(node)].token_begin; };
  TokenSet allowed(trie.tokens.size());
  std::unordered_set<uint64_t> visited;
  HeldBytes held(budget_);
  constexpr size_t kVisitBytes = 100, kVisitsAtOnce = 1024;
  std::vector<Visit> open = {{-1, start}};
  while (!open.empty()) {
    const auto [above, part] = open.back();
    open.pop_back();
    const int32_t end =
        above < 0 ? static_cast<int32_t>(trie.nodes.size()) - 1 : trie.nodes[static_cast<size_t>(above)].end;
    budget_.charge(5 + static_cast<uint64_t>(tokens_from(end) - tokens_from(above + 1)) / 64);
    if (allowed.has_all(tokens_from(above + 1), tokens_from(end))) continue;
    if (!visited.insert(static_cast<uint64_t>(static_cast<uint32_t>(above)) << 32 | static_cast<uint32_t>(part)).second)
      continue;
    budget_.charge(10);
    if (visited.size() % kVisitsAtOnce == 0) held.add(kVisitsAtOnce * kVisitBytes);
    for (int32_t child = above + 1; child < end;) {
      const auto& node = trie.nodes[static_cast<size_t>(child)];
      budget_.charge(1);
      if (const int32_t after = next(part, node.byte); after != kDead) {
        for (int32_t t = node.token_begin; t < tokens_from(child + 1); ++t) allowed.add(t);
        if (node.end > child + 1) {
          const std::vector<int32_t>& all = parts(after);
          for (size_t i = all.size(); i-- > 0;) {
            if (all[i] != part) open.push_back({child, all[i]});
          }
          if (std::find(all.begin(), all.end(), part) != all.end()) open.push_back({child, part});
        }
      }
      child = node.end;
    }
  }
  for (size_t t = 0; t < trie.tokens.size(); ++t) {
    if (allowed.has(static_cast<int32_t>(t))) allow(mask, trie.tokens[t]);
  }
  return at(start).bytes = keep(std::move(mask));
}

std::shared_ptr<const TokenMasks::Mask> TokenMasks::make(int32_t start) {
  Mask mask(static_cast<size_t>(vocabulary_.vocab_size + 31) / 32, 0);
  if (!by_parts_) {
    const int limit = plain_limit(start);
    if (limit >= 0) mask = vocabulary_.plain[static_cast<size_t>(limit)];
    by_parts_ = !walk(limit >= 0 ? vocabulary_.others : vocabulary_.all, start, mask);
  }
  if (by_parts_) {
    const std::vector<int32_t> all = parts(start);
    for (const int32_t part : all) unite(mask, *mask_of_part(part));
  }
  budget_.charge(mask.size() / 8);
  const PushdownAutomaton::States& states = at(start).states;
  for (int symbol = kQuote; symbol < kInputsEnd; ++symbol) {
    const int32_t id = vocabulary_.symbols[static_cast<size_t>(symbol - kQuote)];
    if (id >= 0 && automaton_.reads(states, symbol)) allow(mask, id);
  }
  // If no token can follow, only an end token remains.
  const bool stuck = std::all_of(mask.begin(), mask.end(), [](uint32_t word) { return word == 0; });
  if (states.complete || stuck) {
    for (const int32_t id : end_ids_) allow(mask, id);
  }
  return keep(std::move(mask));
}

}  // namespace gemma4
