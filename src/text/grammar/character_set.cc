#include "text/grammar/character_set.h"

#include <algorithm>

#include "base/check.h"
#include "base/utf8.h"

namespace gemma4 {
namespace {

constexpr int kFirsts = 0xf4 - 0xc2 + 1;  // first bytes of characters past ASCII

// Characters that are not in the groups of their first bytes: white space and line ends, and what a class of letters
// or of symbols leaves out of bytes under which many tokens are. In the order of the groups' bits.
struct Apart {
  uint32_t first, last;
  int group;
};
constexpr Apart kApart[] = {
    {0xd7, 0xd7, 5},      {0xf7, 0xf7, 5},    // multiplication and division sign, among Latin letters
    {0x589, 0x5cf, 6},    {0x5eb, 0x5ee, 6},  // Hebrew and Arabic marks and digits
    {0x5f3, 0x61f, 6},    {0x64b, 0x66d, 6},
    {0x670, 0x670, 6},    {0x6d4, 0x6d4, 6},
    {0x6d6, 0x6e4, 6},    {0x6e7, 0x6ed, 6},
    {0x6f0, 0x6f9, 6},    {0x6fd, 0x6fe, 6},
    {0x1000, 0x167f, 7},  // all of E1 but Vietnamese and other Latin letters
    {0x1680, 0x16bf, 0},  {0x16c0, 0x1dff, 7},
    {0x1f00, 0x1fff, 7},  {0x2000, 0x203f, 1},
    {0x2040, 0x207f, 2},  // general punctuation
    {0x3000, 0x303f, 3},  {0x3040, 0x3040, 8},
    {0x3097, 0x309c, 8},  // marks of Japanese, and symbols after it
    {0x30a0, 0x30a0, 8},  {0x30fb, 0x30fb, 8},
    {0x3100, 0x33ff, 8},  {0x4dc0, 0x4dff, 9},   // hexagrams, among Chinese characters
    {0xa000, 0xabff, 10}, {0xd7a4, 0xd7ff, 10},  // what is not Korean syllables
    {0xfec0, 0xfeff, 4}};
constexpr int kApartGroups = 11;
static_assert(kFirsts + kApartGroups < 63);  // CharacterSet::kBroken

std::string spell(uint32_t point) {
  std::string text;
  utf8_append(text, point);
  return text;
}

// The code points whose UTF-8 begins with a byte.
std::pair<uint32_t, uint32_t> points_of(int first) {
  const auto byte = static_cast<uint32_t>(first);
  if (byte < 0xe0) return {(byte & 0x1f) << 6, (byte & 0x1f) << 6 | 0x3f};
  if (byte == 0xed) return {0xd000, 0xd7ff};
  if (byte < 0xf0) return {std::max<uint32_t>((byte & 0xf) << 12, 0x800), (byte & 0xf) << 12 | 0xfff};
  return {std::max<uint32_t>((byte & 7) << 18, 0x10000), std::min<uint32_t>((byte & 7) << 18 | 0x3ffff, 0x10ffff)};
}

void add_points(uint32_t first, uint32_t last, CharacterGroup& group) {
  std::vector<std::string> ranges;
  if (first <= last) add_utf8_sequences(first, last, ranges);
  for (const std::string& range : ranges) {
    std::vector<ByteInterval> sequence;
    for (size_t i = 0; i < range.size(); i += 2) {
      sequence.push_back({static_cast<unsigned char>(range[i]), static_cast<unsigned char>(range[i + 1])});
    }
    group.sequences.push_back(std::move(sequence));
  }
}

std::vector<CharacterGroup> make_groups() {
  std::vector<CharacterGroup> groups(kFirsts + kApartGroups);
  for (int first = 0; first < kFirsts; ++first) {
    const auto [begin, last] = points_of(first + 0xc2);
    uint32_t from = begin;
    for (const Apart& apart : kApart) {
      if (apart.first < begin || apart.first > last) continue;
      add_points(from, apart.first - 1, groups[static_cast<size_t>(first)]);
      from = apart.last + 1;
    }
    add_points(from, last, groups[static_cast<size_t>(first)]);
  }
  for (const Apart& apart : kApart) {
    add_points(apart.first, apart.last, groups[static_cast<size_t>(kFirsts + apart.group)]);
  }
  return groups;
}

// The kinds of characters() by their first bytes.
constexpr std::string_view kAsciiKinds[] = {"abcdef",
                                            "ghijklmnopqrstuv",
                                            "wxyz",
                                            "ABCDEF",
                                            "GHIJKLMNOPQRSTUV",
                                            "WXYZ",
                                            "0123456789",
                                            " ",
                                            "_",
                                            "-",
                                            ".",
                                            ",;:!?",
                                            "()[]{}<>",
                                            "\"",
                                            "\\",
                                            "@",
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

void add_utf8_sequences(uint32_t first, uint32_t last, std::vector<std::string>& out) {
  const auto add = [&](const auto& self, uint32_t low, uint32_t high) -> void {
    const std::string a = spell(low), b = spell(high);
    for (size_t i = 1; i < a.size(); ++i) {  // a sequence of ranges needs equal lead bytes, or full continuation bytes
      const uint32_t tail = (1u << (6 * i)) - 1;
      if ((low & ~tail) == (high & ~tail)) continue;
      if ((low & tail) != 0) return self(self, low, low | tail), self(self, (low | tail) + 1, high);
      if ((high & tail) != tail) return self(self, low, (high & ~tail) - 1), self(self, high & ~tail, high);
    }
    std::string sequence;
    for (size_t i = 0; i < a.size(); ++i) (sequence += a[i]) += b[i];
    out.push_back(std::move(sequence));
  };
  constexpr std::pair<uint32_t, uint32_t> kLengths[] = {
      {0, 0x7f}, {0x80, 0x7ff}, {0x800, 0xd7ff}, {0xe000, 0xffff}, {0x10000, 0x10ffff}};
  for (const auto& [low, high] : kLengths) {
    if (first <= high && last >= low) add(add, std::max(first, low), std::min(last, high));
  }
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
  const uint32_t point = utf8_point(text);
  const Apart* apart = std::lower_bound(std::begin(kApart), std::end(kApart), point,
                                        [](const Apart& one, uint32_t wanted) { return one.last < wanted; });
  const bool is_apart = apart != std::end(kApart) && apart->first <= point;
  set.others = uint64_t{1} << (is_apart ? kFirsts + apart->group : first - 0xc2);
  return set;
}

}  // namespace gemma4
