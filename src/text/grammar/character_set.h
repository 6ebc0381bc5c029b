// CharacterSet: which characters a text has, or may have next: the ASCII ones one by one, all others by how their UTF-8
// begins. Masks use it to take many tokens at once: all that a branch of the trie holds consist of characters that may
// repeat here (mask.h).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gemma4 {

struct CharacterSet {
  uint64_t low = 0, high = 0;  // ASCII
  uint64_t others = 0;         // bits of character_groups(); kBroken: bytes that are no character
  static constexpr uint64_t kBroken = uint64_t{1} << 63;

  void add_ascii(int c) { (c < 64 ? low : high) |= uint64_t{1} << (c % 64); }
  bool within(const CharacterSet& o) const {
    return ((low & ~o.low) | (high & ~o.high) | (others & ~o.others)) == 0;
  }
  bool meets(const CharacterSet& o) const { return ((low & o.low) | (high & o.high) | (others & o.others)) != 0; }
  bool empty() const { return (low | high | others) == 0; }
  int size() const {  // roughly, in characters
    constexpr int kGroup = 32;
    return __builtin_popcountll(low) + __builtin_popcountll(high) + kGroup * __builtin_popcountll(others);
  }
  CharacterSet& operator|=(const CharacterSet& o) {
    low |= o.low, high |= o.high, others |= o.others;
    return *this;
  }
  CharacterSet& operator&=(const CharacterSet& o) {
    low &= o.low, high &= o.high, others &= o.others;
    return *this;
  }
  // Kinds of characters (digits, brackets, ...) of which some are in the set, as bits; and those of which all are.
  uint32_t kinds() const;
  uint32_t whole_kinds() const;
  auto operator<=>(const CharacterSet&) const = default;
};

struct ByteInterval {
  int first, last;
};

// Adds the UTF-8 of code points as sequences of byte ranges, in their order: a text that has the first and the last
// byte of each range. A range of points is split by UTF-8 length, and where a continuation byte would wrap.
void add_utf8_sequences(uint32_t first, uint32_t last, std::vector<std::string>& out);

// Of characters past ASCII: those whose UTF-8 is one of these sequences of bytes. A first byte is a group, but for
// characters that patterns treat apart from others under the same byte (white space, marks between letters).
struct CharacterGroup {
  std::vector<std::vector<ByteInterval>> sequences;
};
std::span<const CharacterGroup> character_groups();

// The set of one character, of which `text` begins. Nothing where that is no whole character.
CharacterSet set_of_character(std::string_view text);

}  // namespace gemma4
