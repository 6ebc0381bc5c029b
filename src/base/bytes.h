// Reader: a bounds-checked little-endian cursor over bytes that somebody else wrote. Every parser of a binary file
// reads through it, so no count or offset in a file can move a read outside the file.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/check.h"

namespace gemma4 {

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, std::string what) : bytes_(bytes), what_(std::move(what)) {}

  template <typename T>
  T read() {
    static_assert(std::is_arithmetic_v<T>);
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }

  std::span<const std::byte> take(uint64_t count) {
    if (count > remaining()) {
      throw Error(what_ + ": needs " + std::to_string(count) + " bytes at offset " + std::to_string(position_) +
                  " but ends after " + std::to_string(remaining()) + "; the file is cut short or damaged");
    }
    const auto part = bytes_.subspan(position_, count);
    position_ += count;
    return part;
  }

  std::string_view take_string(uint64_t count) {
    const auto part = take(count);
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }

  void seek(uint64_t position) {
    if (position > bytes_.size()) throw Error(what_ + ": offset " + std::to_string(position) + " is past its end");
    position_ = position;
  }

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return bytes_.size() - position_; }
  const std::string& what() const { return what_; }

 private:
  std::span<const std::byte> bytes_;
  std::string what_;
  uint64_t position_ = 0;
};

// a * b and a + b of sizes that a file claims; throws Error where they do not fit 63 bits.
inline int64_t checked_mul(int64_t a, int64_t b, const std::string& what) {
  int64_t result;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &result)) throw Error(what + ": a size in it overflows");
  return result;
}
inline int64_t checked_add(int64_t a, int64_t b, const std::string& what) {
  int64_t result;
  if (a < 0 || b < 0 || __builtin_add_overflow(a, b, &result)) throw Error(what + ": a size in it overflows");
  return result;
}

}  // namespace gemma4
