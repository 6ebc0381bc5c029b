#include "text/tokenizer/bpe.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <string>

#include "base/check.h"
#include "base/utf8.h"

namespace gemma4 {
namespace {

constexpr size_t kAskEvery = size_t{64} << 10;  // bytes, or merges: some milliseconds
constexpr size_t kShort = 48;  // symbols; up to this length a linear scan for the best pair is faster than a heap

uint64_t mix(uint64_t key) {  // Fibonacci hashing: the high bits are well mixed
  return (key * 0x9e3779b97f4a7c15u) >> 24;
}

size_t length_at(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

uint32_t last_point(std::string_view text) {
  size_t at = text.size() - 1;
  while ((static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
  return utf8_point(text.substr(at));
}

}  // namespace

void Bpe::build(const Vocabulary& vocabulary, const std::vector<Merge>& merges) {
  const PackedStrings& tokens = *vocabulary.tokens;
  std::copy_n(vocabulary.byte_ids, 256, byte_ids_);
  unknown_ = vocabulary.unknown;
  byte_fallback_ = vocabulary.byte_fallback;
  fuse_unknown_ = vocabulary.fuse_unknown;

  characters_.assign(0x110000, 0);
  for (size_t i = tokens.size(); i-- > 0;) {  // backwards: of equal tokens the first counts
    const std::string_view token = tokens[i];
    if (!vocabulary.barred[i] && utf8_length(token) == token.size())
      characters_[utf8_point(token)] = static_cast<int32_t>(i) + 1;
  }

  size_t slots = 16;
  while (slots < merges.size() * 2) slots *= 2;
  slots_.assign(slots, {});
  joints_.assign(slots, kEmpty);
  ascii_joints_.assign(128 * 128, 0);
  // Cutting is safe only if every character is either a token of its own or a run of byte tokens, and byte tokens never
  // merge. Then the two characters at a cut decide whether a merge can join the sides.
  cut_ = byte_fallback_ && std::all_of(byte_ids_, byte_ids_ + 256, [](int32_t id) { return id >= 0; });
  std::vector<uint8_t> is_byte(tokens.size(), 0);
  for (const int32_t id : byte_ids_) {
    if (id >= 0) is_byte[id] = 1;
  }
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    const uint64_t key = static_cast<uint64_t>(merge.left) << 32 | static_cast<uint32_t>(merge.right);
    size_t at = mix(key) & (slots - 1);
    while (slots_[at].key != kEmpty && slots_[at].key != key) at = (at + 1) & (slots - 1);
    slots_[at] = {key, static_cast<int32_t>(rank), merge.result};

    if (is_byte[merge.left] || is_byte[merge.right]) cut_ = false;
    const uint32_t before = last_point(tokens[merge.left]), after = utf8_point(tokens[merge.right]);
    if (before < 128 && after < 128) {
      ascii_joints_[before * 128 + after] = 1;
    } else {
      const uint64_t joint = static_cast<uint64_t>(before) << 32 | after;
      at = mix(joint) & (slots - 1);
      while (joints_[at] != kEmpty && joints_[at] != joint) at = (at + 1) & (slots - 1);
      joints_[at] = joint;
    }
  }
}

std::vector<Bpe::Merge> Bpe::list() const {
  std::vector<const Slot*> used;
  for (const Slot& slot : slots_) {
    if (slot.key != kEmpty) used.push_back(&slot);
  }
  std::sort(used.begin(), used.end(), [](const Slot* a, const Slot* b) { return a->rank < b->rank; });
  std::vector<Merge> merges;
  for (const Slot* slot : used) {
    merges.push_back(
        {static_cast<int32_t>(slot->key >> 32), static_cast<int32_t>(slot->key & 0xffffffffu), slot->result});
  }
  return merges;
}

const Bpe::Slot* Bpe::find(int32_t left, int32_t right) const {
  const uint64_t key = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  size_t at = mix(key) & (slots_.size() - 1);
  while (slots_[at].key != kEmpty) {
    if (slots_[at].key == key) return &slots_[at];
    at = (at + 1) & (slots_.size() - 1);
  }
  return nullptr;
}

bool Bpe::may_join(uint32_t before, uint32_t after) const {
  if (!cut_) return true;
  if (before < 128 && after < 128) return ascii_joints_[before * 128 + after];
  const uint64_t joint = static_cast<uint64_t>(before) << 32 | after;
  size_t at = mix(joint) & (joints_.size() - 1);
  while (joints_[at] != kEmpty) {
    if (joints_[at] == joint) return true;
    at = (at + 1) & (joints_.size() - 1);
  }
  return false;
}

void Bpe::add_character(std::string_view character, uint32_t point, std::vector<int32_t>& symbols) const {
  if (const int32_t id = characters_[point]; id != 0) {
    symbols.push_back(id - 1);
    return;
  }
  if (byte_fallback_ && std::all_of(character.begin(), character.end(),
                                    [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] >= 0; })) {
    for (const char c : character) symbols.push_back(byte_ids_[static_cast<unsigned char>(c)]);
    return;
  }
  if (unknown_ < 0) throw Error("the vocabulary has no token for the character '" + std::string(character) + "'");
  if (fuse_unknown_ && !symbols.empty() && symbols.back() == unknown_) return;
  symbols.push_back(unknown_);
}

void Bpe::encode(std::string_view text, std::vector<int32_t>& ids, const std::function<void()>& between) const {
  std::vector<int32_t> symbols;
  uint32_t before = 0;
  size_t ask_at = text.size();  // bytes left when `between` is called next
  while (!text.empty()) {
    if (between && text.size() <= ask_at) {
      between();
      ask_at = text.size() > kAskEvery ? text.size() - kAskEvery : 0;
    }
    const uint32_t point = utf8_point(text);
    const size_t length = length_at(text);
    if (!symbols.empty() && !may_join(before, point)) finish(symbols, ids, between);
    if (symbols.size() >= kRunMax) {
      throw Error("the text has more than " + std::to_string(kRunMax) +
                  " characters in a row that cannot be tokenised apart");
    }
    add_character(text.substr(0, length), point, symbols);
    text.remove_prefix(length);
    before = point;
  }
  finish(symbols, ids, between);
}

void Bpe::finish(std::vector<int32_t>& symbols, std::vector<int32_t>& ids, const std::function<void()>& between) const {
  if (symbols.size() > kShort) {
    merge_long(symbols, between);
  } else if (symbols.size() > 1) {
    merge_short(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
  symbols.clear();
}

void Bpe::merge_short(std::vector<int32_t>& symbols) const {
  const Slot* pairs[kShort];  // [size - 1]: how symbols i and i + 1 merge, null where they do not
  size_t size = symbols.size();
  for (size_t i = 0; i + 1 < size; ++i) pairs[i] = find(symbols[i], symbols[i + 1]);
  while (true) {
    size_t best = size;
    for (size_t i = 0; i + 1 < size; ++i) {
      if (pairs[i] != nullptr && (best == size || pairs[i]->rank < pairs[best]->rank)) best = i;
    }
    if (best == size) break;
    symbols[best] = pairs[best]->result;
    std::move(symbols.begin() + best + 2, symbols.begin() + size, symbols.begin() + best + 1);
    std::move(pairs + best + 1, pairs + size - 1, pairs + best);
    --size;
    if (best > 0) pairs[best - 1] = find(symbols[best - 1], symbols[best]);
    if (best + 1 < size) pairs[best] = find(symbols[best], symbols[best + 1]);
  }
  symbols.resize(size);
}

void Bpe::merge_long(std::vector<int32_t>& symbols, const std::function<void()>& between) const {
  const auto size = static_cast<int32_t>(symbols.size());
  std::vector<int32_t> previous(size), next(size);
  std::vector<const Slot*> pairs(size, nullptr);  // how symbol i and the one after it merge
  const auto look_up = [&](int32_t at) {
    pairs[at] = next[at] < size ? find(symbols[at], symbols[next[at]]) : nullptr;
    return pairs[at] != nullptr;
  };
  const auto entry = [&](int32_t at) {
    return static_cast<uint64_t>(pairs[at]->rank) << 32 | static_cast<uint32_t>(at);
  };
  for (int32_t i = 0; i < size; ++i) previous[i] = i - 1, next[i] = i + 1;
  std::vector<uint64_t> first;
  for (int32_t i = 0; i < size; ++i) {
    if (look_up(i)) first.push_back(entry(i));
  }
  // An entry is the rank and the position in one number; the lowest comes first. An entry is stale if the pair at its
  // position has another rank by now.
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> queue(std::greater<>(), std::move(first));
  for (size_t taken = 1; !queue.empty(); ++taken) {
    if (between && taken % kAskEvery == 0) between();
    const uint64_t best = queue.top();
    queue.pop();
    const auto at = static_cast<int32_t>(best & 0xffffffffu);
    if (pairs[at] == nullptr || entry(at) != best) continue;
    const int32_t right = next[at];
    symbols[at] = pairs[at]->result;
    symbols[right] = -1;
    pairs[right] = nullptr;
    next[at] = next[right];
    if (next[right] < size) previous[next[right]] = at;
    if (previous[at] >= 0 && look_up(previous[at])) queue.push(entry(previous[at]));
    if (look_up(at)) queue.push(entry(at));
  }
  symbols.erase(std::remove(symbols.begin(), symbols.end(), -1), symbols.end());
}

}  // namespace gemma4
