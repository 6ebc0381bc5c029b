// PackedStrings: many short strings in one block of memory. StringTable: a hash table from such a string to its index.
// A vocabulary has a quarter of a million strings; as std::string they would take four times the memory.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace gemma4 {

class PackedStrings {
 public:
  void add(std::string_view text) {
    bytes_.append(text);
    ends_.push_back(static_cast<uint32_t>(bytes_.size()));
  }
  std::string_view operator[](size_t i) const {
    const uint32_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(bytes_).substr(begin, ends_[i] - begin);
  }
  size_t size() const { return ends_.size(); }

 private:
  std::string bytes_;
  std::vector<uint32_t> ends_;
};

// Indices of the strings of one PackedStrings, which must outlive the table and not change. Of equal strings the first
// counts.
class StringTable {
 public:
  void build(const PackedStrings& strings) {
    strings_ = &strings;
    size_t slots = 16;
    while (slots < strings.size() * 2) slots *= 2;
    slots_.assign(slots, 0);
    for (size_t i = 0; i < strings.size(); ++i) {
      uint32_t& slot = slots_[locate(strings[i])];
      if (slot == 0) slot = static_cast<uint32_t>(i) + 1;
    }
  }
  int32_t find(std::string_view text) const {  // -1: not there
    return static_cast<int32_t>(slots_[locate(text)]) - 1;
  }

 private:
  size_t locate(std::string_view text) const {
    size_t at = std::hash<std::string_view>{}(text) & (slots_.size() - 1);
    while (slots_[at] != 0 && (*strings_)[slots_[at] - 1] != text) at = (at + 1) & (slots_.size() - 1);
    return at;
  }
  const PackedStrings* strings_ = nullptr;
  std::vector<uint32_t> slots_;  // number + 1, 0 for empty; a power of two of them
};

}  // namespace gemma4
