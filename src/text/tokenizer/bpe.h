// Bpe: byte-pair encoding (BPE) of a text without added tokens. The pair of neighbours with the lowest rank in the
// merge list is merged first; of equal ranks the leftmost. For speed the text is cut between two characters that no
// merge can join, so the result is the same as merging the whole text at once.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "text/tokenizer/packed_strings.h"

namespace gemma4 {

class Bpe {
 public:
  struct Merge {
    int32_t left, right, result;  // token ids
  };
  struct Vocabulary {
    const PackedStrings* tokens;
    const StringTable* table;
    const int32_t* byte_ids;  // [256], -1 where there is none
    const uint8_t*
        barred;       // [tokens] no character is encoded as this token: it is a control token, or only an added one
    int32_t unknown;  // -1: none
    bool byte_fallback, fuse_unknown;
  };

  // `merges` is in order of rank. Of two merges of the same pair the later one counts.
  void build(const Vocabulary& vocabulary, const std::vector<Merge>& merges);

  // Appends the ids of `text`, which must be valid UTF-8. Calls `between` about once for 64 KiB of text, if it is not
  // empty, and passes on what it throws. Throws Error for a run of more than kRunMax characters that cannot be cut.
  void encode(std::string_view text, std::vector<int32_t>& ids, const std::function<void()>& between = {}) const;

  std::vector<Merge> list() const;  // in order of rank

 private:
  struct Slot {
    uint64_t key = kEmpty;  // left << 32 | right
    int32_t rank = 0, result = 0;
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  // Merging a run takes 28 bytes a character: 112 MiB.
  static constexpr size_t kRunMax = size_t{4} << 20;

  const Slot* find(int32_t left, int32_t right) const;
  bool may_join(uint32_t before, uint32_t after) const;
  void add_character(std::string_view character, uint32_t point, std::vector<int32_t>& symbols) const;
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols, const std::function<void()>& between) const;
  void finish(std::vector<int32_t>& symbols, std::vector<int32_t>& ids, const std::function<void()>& between) const;

  std::vector<Slot> slots_;
  std::vector<uint64_t> joints_;       // pairs that a merge can join: (last character of left, first of right). A hash
                                       // set with open addressing
  std::vector<uint8_t> ascii_joints_;  // [128 * 128], the same for pairs of ASCII characters
  std::vector<int32_t> characters_;    // [0x110000]: id + 1 of the character's own token, 0 for none
  bool cut_ = false;
  int32_t byte_ids_[256] = {};
  int32_t unknown_ = -1;
  bool byte_fallback_ = false, fuse_unknown_ = false;
};

}  // namespace gemma4
