#include "text/grammar/mask.h"

#include <algorithm>
#include <unordered_set>

namespace gemma4 {
namespace {

// Between two masks all states and masks are dropped, and built again, if they take more than this.
constexpr size_t kHeldMax = 24 << 20;
// New sets of states in one walk, and their bytes; past that, masks are made by parts.
constexpr uint64_t kStepsAtOnce = 256;  // children of nodes of the trie that are charged together
constexpr size_t kNewSetsMax = 3000, kNewBytesMax = 16 << 20;

// UTF-8 without quote, backslash, controls, and U+2028 and U+2029, which the `.` of a pattern does not match.
// Unicode 15, table 3-7.
const std::vector<std::vector<ByteInterval>>& plain_sequences() {
  constexpr ByteInterval kTail{0x80, 0xbf};
  static const std::vector<std::vector<ByteInterval>> kSequences = {{{' ', '!'}},
                                                                    {{'#', '['}},
                                                                    {{']', '~'}},
                                                                    {{0xc2, 0xdf}, kTail},
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
    kinds_.clear();
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

// Where each of these bytes leads; kDead or kMixed where they do not all lead to one state.
int32_t TokenMasks::after_bytes(int32_t state, ByteInterval bytes) {
  const bool tail = bytes.first == 0x80 && bytes.last == 0xbf;
  if (tail && at(state).tail != kUnknown) return at(state).tail;
  const int32_t to = next(state, static_cast<uint8_t>(bytes.first));
  bool same = true;
  for (int byte = bytes.first + 1; byte <= bytes.last && same; ++byte) {
    same = next(state, static_cast<uint8_t>(byte)) == to;
  }
  const int32_t result = same ? to : kMixed;
  if (tail) at(state).tail = result;
  return result;
}

// The same for sequences of bytes.
int32_t TokenMasks::after_sequences(int32_t state, const std::vector<std::vector<ByteInterval>>& sequences) {
  int32_t result = kUnknown;
  for (const std::vector<ByteInterval>& sequence : sequences) {
    int32_t to = state;
    for (size_t i = 0; i < sequence.size() && to >= 0; ++i) to = after_bytes(to, sequence[i]);
    if (to == kMixed || (result != kUnknown && result != to)) return kMixed;
    result = to;
  }
  return result;
}

bool TokenMasks::takes_any(int32_t state, const std::vector<std::vector<ByteInterval>>& sequences) {
  const auto takes = [&](const std::vector<ByteInterval>& sequence) REQUIRES(mutex_) {
    std::vector<int32_t> states = {state};
    for (const ByteInterval& bytes : sequence) {
      std::vector<int32_t> after;
      for (const int32_t one : states) {
        for (int byte = bytes.first; byte <= bytes.last; ++byte) {
          const int32_t to = next(one, static_cast<uint8_t>(byte));
          if (to != kDead && (after.empty() || after.back() != to)) after.push_back(to);
        }
      }
      budget_.charge(states.size() * 10);
      states = std::move(after);
    }
    return !states.empty();
  };
  return std::any_of(sequences.begin(), sequences.end(), takes);
}

// All characters of a part lead to one state (PushdownAutomaton::Group), and which characters these are depends on its
// nodes alone, not on its stack. So it is found out once for all parts with equal nodes.
const TokenMasks::Kind& TokenMasks::kind(const PushdownAutomaton::States& part) {
  std::vector<int32_t> key = automaton_.characters_key(part);
  budget_.charge(10 + key.size());
  if (const auto known = kinds_.find(key); known != kinds_.end()) return known->second;
  static const Kind kUnclear = Kind::unclear();
  budget_.charge(500);
  held_.add(sizeof(Kind) + key.size() * sizeof(key[0]) + 100);
  const int32_t state = find(part);
  Kind made;
  int32_t to = kUnknown;
  const auto add = [&](int32_t after, const CharacterSet& set, const std::string& sample) {
    if (after == kDead) return;
    made.touched |= set;
    if (to == kUnknown && after >= 0) to = after, made.sample = sample;
    made.one_way &= after == to;
    if (after >= 0 && after == to) made.set |= set;
  };
  for (int c = 0; c < 0x80; ++c) {
    CharacterSet set;
    set.add_ascii(c);
    add(next(state, static_cast<uint8_t>(c)), set, std::string(1, static_cast<char>(c)));
  }
  const std::span<const CharacterGroup> groups = character_groups();
  for (size_t i = 0; i < groups.size(); ++i) {
    CharacterSet set;
    set.others = uint64_t{1} << i;
    std::string sample;
    for (const ByteInterval& bytes : groups[i].sequences[0]) sample += static_cast<char>(bytes.first);
    add(after_sequences(state, groups[i].sequences), set, sample);
  }
  // Nothing can follow here, or the part is inside a character.
  if (made.touched.empty() && automaton_.reads_bytes(part)) return kUnclear;
  made.all_plain = to != kUnknown && after_sequences(state, plain_sequences()) == to;
  made.any_plain = takes_any(state, plain_sequences());
  made.first = state;
  if (made.touched.others != 0 && automaton_.is_one_character(part)) made.wide = wide_character(state);
  return kinds_.emplace(std::move(key), std::move(made)).first->second;
}

PushdownAutomaton::States TokenMasks::after(PushdownAutomaton::States part, std::string_view character) {
  for (const char byte : character) part = automaton_.advance(part, static_cast<unsigned char>(byte));
  return part;
}

constexpr uint8_t kWideFirst = 0xc2, kWideLast = 0xf4;  // first bytes of characters past ASCII

// The bytes that UTF-8 has after this first one.
static int tail_length(uint8_t first) { return first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3; }

// The first character past ASCII that a part takes.
std::string TokenMasks::wide_character(int32_t part) {
  std::string character;
  const auto add = [&](int from, int to) REQUIRES(mutex_) {
    for (int byte = from; byte <= to; ++byte) {
      if (const int32_t after = next(part, static_cast<uint8_t>(byte)); after >= 0) {
        character += static_cast<char>(byte);
        part = after;
        return true;
      }
    }
    return false;
  };
  if (!add(kWideFirst, kWideLast)) return "";
  for (int left = tail_length(static_cast<uint8_t>(character[0])); left > 0; --left) {
    if (!add(0x80, 0xbf)) return "";
  }
  return character;
}

const std::vector<TokenMasks::WideWay>& TokenMasks::wide_ways(int32_t state) {
  if (at(state).wide) return *at(state).wide;
  auto made = std::make_unique<std::vector<WideWay>>();
  const std::vector<int32_t> all = parts(state);
  for (const int32_t part : all) {
    const Kind& one = kind(at(part).states);
    if (one.touched.others == 0) continue;
    if (one.wide.empty()) {
      made->push_back({part});
    } else {
      made->push_back({one.first, find(after(at(part).states, one.wide))});
    }
  }
  budget_.charge(10 * all.size());
  held_.add(sizeof(*made) + made->size() * sizeof(WideWay));
  at(state).wide = std::move(made);
  return *at(state).wide;
}

// The part that takes the characters that begin with this byte. Null where none does, or where several do.
const TokenMasks::WideWay* TokenMasks::wide_way(int32_t state, uint8_t byte) {
  const WideWay* found = nullptr;
  for (const WideWay& way : wide_ways(state)) {
    if (next(way.from, byte) == kDead) continue;
    if (found != nullptr || way.to == kUnknown) return nullptr;
    found = &way;
  }
  return found;
}

// The plain tokens that may come are those of up to so many characters. -1, which is always safe: that is not so, or it
// is not easy to tell; the tokens are then looked at one by one.
int TokenMasks::plain_limit(int32_t state) {
  bool only = true;  // no other part took one of the characters so far
  PushdownAutomaton::States states = at(state).states;
  for (int i = 0; i < vocabulary_.plain_longest; ++i) {
    const std::vector<PushdownAutomaton::States> parts = automaton_.parts(states);
    const PushdownAutomaton::States* takes = nullptr;
    for (const PushdownAutomaton::States& part : parts) {
      const Kind& one = kind(part);
      if (one.all_plain && takes == nullptr) {
        takes = &part;
      } else if (one.any_plain) {
        only = false;
      }
    }
    if (takes == nullptr) return only ? i : -1;
    PushdownAutomaton::States next = after(*takes, kind(*takes).sample);
    const std::string key = PushdownAutomaton::key(*takes);
    for (const PushdownAutomaton::States& part : automaton_.parts(next)) {
      if (PushdownAutomaton::key(part) == key) return vocabulary_.plain_longest;
    }
    states = std::move(next);
  }
  return vocabulary_.plain_longest;
}

TokenMasks::Ahead& TokenMasks::ahead(int32_t state) {
  if (at(state).ahead) return *at(state).ahead;
  held_.add(sizeof(Ahead));
  auto made = std::make_unique<Ahead>();
  made->state = state;
  const std::vector<PushdownAutomaton::States> parts = automaton_.parts(at(state).states);
  const PushdownAutomaton::States* most = nullptr;
  for (const PushdownAutomaton::States& part : parts) {
    const CharacterSet& set = kind(part).set;
    if (set.size() > made->set.size()) made->set = set, most = &part;
  }
  if (most != nullptr) {
    made->alone = std::all_of(parts.begin(), parts.end(), [&](const PushdownAutomaton::States& part) REQUIRES(mutex_) {
      return &part == most || !kind(part).touched.meets(made->set);
    });
    PushdownAutomaton::States next = after(*most, kind(*most).sample);
    if (!next.dead()) made->to = find(std::move(next));
  }
  made->kinds = made->set.kinds();
  made->whole_kinds = made->set.whole_kinds();
  at(state).ahead = std::move(made);
  return *at(state).ahead;
}

// Characters of which each text of up to so many may come, as far as one part after another takes them.
const CharacterSet& TokenMasks::texts(int32_t state, int characters) {
  Ahead& here = ahead(state);
  while (here.texts.size() < static_cast<size_t>(characters) && !here.endless) {
    const Ahead& last = ahead(here.state);
    CharacterSet set = last.set;
    if (!here.texts.empty()) set &= here.texts.back();
    if (last.to == kDead) set = {};
    budget_.charge(10);
    held_.add(sizeof(CharacterSet));
    here.texts.push_back(set);
    here.endless = set.empty() || last.to == here.state;
    if (here.endless) continue;
    here.all_alone &= last.alone;
    here.state = last.to;
  }
  return here.texts[std::min(static_cast<size_t>(characters), here.texts.size()) - 1];
}

// The number of characters after which none of the last set of texts() may come, where that is easy to tell; or -1.
// `thorough`: also where several parts take them.
int TokenMasks::end_of_texts(int32_t state, bool thorough) {
  Ahead& here = ahead(state);
  if (here.end >= 0 || here.end == kMixed || (here.end == kDead && !thorough)) return here.end;
  if (here.texts.size() < 2 || !here.texts.back().empty()) return kDead;
  const size_t count = here.texts.size() - 1;
  const auto touches = [&](const PushdownAutomaton::States& part)
                           REQUIRES(mutex_) { return kind(part).touched.meets(here.texts[count - 1]); };
  const auto none_touches = [&](const PushdownAutomaton::States& states) {
    const std::vector<PushdownAutomaton::States> parts = automaton_.parts(states);
    return std::none_of(parts.begin(), parts.end(), touches);
  };
  if (here.all_alone && none_touches(at(here.state).states)) return here.end = static_cast<int>(count);
  here.end = kDead;
  if (!thorough) return here.end;
  here.end = kMixed;
  PushdownAutomaton::States states = at(state).states;  // all that a text may lead to
  for (size_t i = 0; i < count; ++i) {
    std::vector<PushdownAutomaton::States> next;
    for (const PushdownAutomaton::States& part : automaton_.parts(states)) {
      const Kind& one = kind(part);
      if (!one.touched.meets(here.texts[i])) continue;
      if (!one.one_way) return here.end;
      next.push_back(after(part, one.sample));
    }
    states = automaton_.united(next);
  }
  if (none_touches(states)) here.end = static_cast<int>(count);
  return here.end;
}

// Takes the tokens below a node, where it is easy to tell which may come.
bool TokenMasks::take_below(int32_t state, const Trie& trie, const Branch& branch, Mask& mask) {
  constexpr int32_t kWorth = 64, kMany = 64;  // tokens
  const auto& node = trie.nodes[static_cast<size_t>(branch.node)];
  const int32_t begin = node.begin + node.own, count = branch.end - begin;
  int32_t& met = at(state).met;
  if (met < kWorth) {
    met += count;
    if (met < kWorth) return false;
  }
  const Ahead& here = ahead(state);
  if (node.kinds & ~here.kinds) return false;
  const auto rest = [&]() -> const CharacterSet& {
    return trie.sets[static_cast<size_t>(trie.rests[static_cast<size_t>(branch.node)])];
  };
  if (node.kinds & ~here.whole_kinds && !rest().within(here.set)) return false;
  const CharacterSet& any_order = texts(state, node.longest);
  if (any_order == here.set || rest().within(any_order)) {
    if (branch.node == 0) {
      budget_.charge(mask.size() / 16);
      unite(mask, trie.mask);
      return true;
    }
    for (int32_t t = begin; t < branch.end; ++t) allow(mask, trie.tokens[static_cast<size_t>(t)]);
  } else {
    const int limit = end_of_texts(state, count >= kMany);
    if (limit < 0 || !rest().within(here.texts[static_cast<size_t>(limit) - 1])) return false;
    for (int32_t t = begin; t < branch.end; ++t) {
      const auto token = static_cast<size_t>(t);
      if (trie.characters[token] - branch.characters <= limit) allow(mask, trie.tokens[token]);
    }
  }
  budget_.charge(static_cast<uint64_t>(count) / 8);
  return true;
}

// Adds the tokens of `trie` that may come. False where that takes too many new sets of states.
bool TokenMasks::walk(const Trie& trie, int32_t start, Mask& mask) {
  const size_t sets = dfa_states_.size(), bytes = held_.bytes();
  struct Visit {
    Branch branch;
    int32_t state;
    int32_t left, to;  // of a character whose bytes are walked in the states of a WideWay: bytes, and where it leads
  };
  const Branch whole = {0, static_cast<int32_t>(trie.tokens.size()), 0};
  if (trie.nodes[0].longest > 0 && take_below(start, trie, whole, mask)) return true;
  std::vector<Visit> open = {{whole, start, 0, kUnknown}};
  uint64_t steps = 0;
  while (!open.empty()) {
    const Visit visit = open.back();
    open.pop_back();
    const auto& above = trie.nodes[static_cast<size_t>(visit.branch.node)];
    steps += 2 + above.count;
    if (steps >= kStepsAtOnce) {
      budget_.charge(std::exchange(steps, 0));
      if (dfa_states_.size() - sets > kNewSetsMax || held_.bytes() - bytes > kNewBytesMax) return false;
    }
    const int32_t* known = at(visit.state).next.data();
    const WideWay* way = nullptr;
    int32_t from = visit.state;
    for (int32_t i = above.children, last = i + above.count - 1; i <= last; ++i) {
      const auto& node = trie.nodes[static_cast<size_t>(i)];
      int32_t left = visit.left - 1, to = visit.to;
      if (visit.left == 0 && node.byte >= kWideFirst && node.byte <= kWideLast) {
        way = wide_way(visit.state, node.byte);
        from = way == nullptr ? visit.state : way->from;
        known = at(from).next.data();
        left = way == nullptr ? 0 : tail_length(node.byte);
        to = way == nullptr ? kUnknown : way->to;
      }
      int32_t state = known[node.byte] != kUnknown ? known[node.byte] : next(from, node.byte);
      if (state == kDead) continue;
      if (left == 0 && to != kUnknown) state = to;
      for (int32_t t = node.begin; t < node.begin + node.own; ++t) allow(mask, trie.tokens[static_cast<size_t>(t)]);
      if (node.count == 0) continue;
      const Branch branch = {i, i < last ? (&node)[1].begin : visit.branch.end,
                             visit.branch.characters + ((node.byte & 0xc0) != 0x80)};
      if (node.longest > 0 && take_below(state, trie, branch, mask)) continue;
      __builtin_prefetch(&trie.nodes[static_cast<size_t>(node.children)]);
      open.push_back({branch, state, std::max(left, 0), to});
    }
  }
  budget_.charge(steps);
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
void TokenMasks::walk_part(const Trie& trie, int32_t start, Mask& mask) {
  struct Visit {
    int32_t node, end, part;  // the end of its tokens
  };
  TokenSet allowed(trie.tokens.size());
  std::unordered_set<uint64_t> visited;
  HeldBytes held(budget_);
  constexpr size_t kVisitBytes = 100, kVisitsAtOnce = 1024;
  std::vector<Visit> open = {{0, static_cast<int32_t>(trie.tokens.size()), start}};
  while (!open.empty()) {
    const auto [number, end, part] = open.back();
    open.pop_back();
    const auto& above = trie.nodes[static_cast<size_t>(number)];
    budget_.charge(5 + static_cast<uint64_t>(end - above.begin) / 64);
    if (allowed.has_all(above.begin + above.own, end)) continue;
    if (!visited.insert(static_cast<uint64_t>(number) << 32 | static_cast<uint32_t>(part)).second) continue;
    budget_.charge(10);
    if (visited.size() % kVisitsAtOnce == 0) held.add(kVisitsAtOnce * kVisitBytes);
    for (int32_t i = above.children, last = i + above.count - 1; i <= last; ++i) {
      const auto& node = trie.nodes[static_cast<size_t>(i)];
      budget_.charge(1);
      const int32_t after = next(part, node.byte);
      if (after == kDead) continue;
      for (int32_t t = node.begin; t < node.begin + node.own; ++t) allowed.add(t);
      if (node.count == 0) continue;
      const int32_t end_of_node = i < last ? (&node)[1].begin : end;
      const std::vector<int32_t>& all = parts(after);
      for (size_t k = all.size(); k-- > 0;) {
        if (all[k] != part) open.push_back({i, end_of_node, all[k]});
      }
      if (std::find(all.begin(), all.end(), part) != all.end()) open.push_back({i, end_of_node, part});
    }
  }
  for (size_t t = 0; t < trie.tokens.size(); ++t) {
    if (allowed.has(static_cast<int32_t>(t))) allow(mask, trie.tokens[t]);
  }
}

std::shared_ptr<const TokenMasks::Mask> TokenMasks::mask_of_part(int32_t part) {
  if (at(part).bytes) return at(part).bytes;
  Mask mask(static_cast<size_t>(vocabulary_.vocab_size + 31) / 32, 0);
  const int limit = plain_limit(part);
  if (limit >= 0) {
    mask = vocabulary_.plain[static_cast<size_t>(limit)];
    walk_part(vocabulary_.others, part, mask);
  } else {
    for (const Trie& trie : vocabulary_.all) walk_part(trie, part, mask);
  }
  return at(part).bytes = keep(std::move(mask));
}

std::shared_ptr<const TokenMasks::Mask> TokenMasks::make(int32_t start) {
  Mask mask(static_cast<size_t>(vocabulary_.vocab_size + 31) / 32, 0);
  if (!by_parts_) {
    const int limit = plain_limit(start);
    if (limit >= 0) mask = vocabulary_.plain[static_cast<size_t>(limit)];
    const auto walked = [&](const Trie& trie) REQUIRES(mutex_) { return walk(trie, start, mask); };
    by_parts_ = !(limit >= 0 ? walked(vocabulary_.others)
                             : std::all_of(vocabulary_.all.begin(), vocabulary_.all.end(), walked));
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
