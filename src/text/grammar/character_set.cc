#include "text/grammar/character_set.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/utf8.h"

namespace gemma4 {
namespace {

constexpr ByteInterval kAnyTail{0x80, 0xbf};

// First two bytes of groups of their own: U+1680; U+2000 to U+203F; U+2040 to U+207F; U+3000 to U+303F; U+FEFF.
constexpr std::array<std::pair<int, int>, 5> kApart = {
    {{0xe1, 0x9a}, {0xe2, 0x80}, {0xe2, 0x81}, {0xe3, 0x80}, {0xef, 0xbb}}};

// The second bytes of UTF-8 after a first one (Unicode 15, table 3-7).
ByteInterval second_bytes(int first) {
  if (first == 0xe0) return {0xa0, 0xbf};
  if (first == 0xed) return {0x80, 0x9f};
  if (first == 0xf0) return {0x90, 0xbf};
  if (first == 0xf4) return {0x80, 0x8f};
  return kAnyTail;
}

std::vector<CharacterGroup> make_groups() {
  std::vector<CharacterGroup> groups;
  for (int first = 0xc2; first <= 0xf4; ++first) {
    const size_t length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    CharacterGroup group;
    const auto add = [&](int from, int to) {
      if (from > to) return;
      std::vector<ByteInterval> sequence = {{first, first}, {from, to}};
      sequence.resize(length, kAnyTail);
      group.sequences.push_back(std::move(sequence));
    };
    const ByteInterval second = second_bytes(first);
    int from = second.first;
    for (const auto& [apart, byte] : kApart) {
      if (apart != first) continue;
      add(from, byte - 1);
      from = byte + 1;
    }
    add(from, second.last);
    groups.push_back(std::move(group));
  }
  for (const auto& [first, second] : kApart) {
    groups.push_back({{{{first, first}, {second, second}, kAnyTail}}});
  }
  return groups;
}

// The kinds of characters() by their first bytes.
constexpr std::string_view kAsciiKinds[] = {"abcdef", "ghijklmnopqrstuv", "wxyz", "ABCDEF", "GHIJKLMNOPQRSTUV", "WXYZ",
                                            "0123456789", " ", "_", "-", ".", ",;:!?", "()[]{}<>", "\"", "\\", "@",
                                            "/"};
constexpr int kOtherFirsts[] = {0xc2, 0xc4, 0xca, 0xd0, 0xd4, 0xe0, 0xe1, 0xe2, 0xe3, 0xe4, 0xea, 0xee, 0xf0, 0xf5};

std::vector<CharacterSet> make_kinds() {
  constexpr uint64_t kAll = ~uint64_t{0};
  CharacterSet ascii{kAll, kAll, 0}, others{0, 0, kAll};  // what no kind below has
  std::vector<CharacterSet> kinds;
  for (const std::string_view characters : kAsciiKinds) {
    CharacterSet kind;
    for (const char c : characters) kind.add_ascii(c);
    ascii.low &= ~kind.low, ascii.high &= ~kind.high;
    kinds.push_back(kind);
  }
  for (size_t i = 0; i + 1 < std::size(kOtherFirsts); ++i) {
    CharacterSet kind;
    for (int first = kOtherFirsts[i]; first < kOtherFirsts[i + 1]; ++first) {
      kind.others |= uint64_t{1} << (first - 0xc2);
    }
    others.others &= ~kind.others;
    kinds.push_back(kind);
  }
  kinds.insert(kinds.end(), {ascii, others});
  CHECK(kinds.size() <= 32);
  return kinds;
}

}  // namespace

static const std::vector<CharacterSet>& all_kinds() {
  static const std::vector<CharacterSet> kKinds = make_kinds();
  return kKinds;
}

uint32_t CharacterSet::kinds() const {
  uint32_t bits = 0, bit = 1;
  for (const CharacterSet& kind : all_kinds()) bits |= meets(kind) ? bit : 0, bit <<= 1;
  return bits;
}

uint32_t CharacterSet::whole_kinds() const {
  uint32_t bits = 0, bit = 1;
  for (const CharacterSet& kind : all_kinds()) bits |= kind.within(*this) ? bit : 0, bit <<= 1;
  return bits;
}

std::span<const CharacterGroup> character_groups() {
  static const std::vector<CharacterGroup> kGroups = make_groups();
  return kGroups;
}

CharacterSet set_of_character(std::string_view text) {
  CharacterSet set;
  if (utf8_length(text) == 0) return set;
  const int first = static_cast<unsigned char>(text[0]);
  if (first < 0x80) {
    set.add_ascii(first);
    return set;
  }
  const std::pair<int, int> begin(first, static_cast<unsigned char>(text[1]));
  const auto apart = std::find(kApart.begin(), kApart.end(), begin);
  const auto firsts = static_cast<int>(0xf4 - 0xc2 + 1);
  const auto bit = apart == kApart.end() ? first - 0xc2 : firsts + static_cast<int>(apart - kApart.begin());
  set.others = uint64_t{1} << bit;
  return set;
}

}  // namespace gemma4
