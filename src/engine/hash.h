// Hash: a 64-bit SipHash. Its key is drawn at start-up, so that clients cannot construct two prompts or pictures with
// the same hash. Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (here 1-3 rounds, as Rust's hash
// maps use).
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>

namespace gemma4 {

struct HashKey {
  uint64_t a = 0, b = 0;
  static HashKey random();
};

class Hasher {
 public:
  explicit Hasher(const HashKey& key)
      : v0_(key.a ^ 0x736f6d6570736575),
        v1_(key.b ^ 0x646f72616e646f6d),
        v2_(key.a ^ 0x6c7967656e657261),
        v3_(key.b ^ 0x7465646279746573) {}

  void add(uint64_t word) {
    v3_ ^= word;
    round();
    v0_ ^= word;
  }

  void add(std::span<const std::byte> bytes) {
    add(bytes.size());
    size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
      uint64_t word;
      std::memcpy(&word, bytes.data() + i, 8);
      add(word);
    }
    uint64_t tail = 0;
    if (i < bytes.size()) std::memcpy(&tail, bytes.data() + i, bytes.size() - i);
    add(tail);
  }

  uint64_t finish() {
    v2_ ^= 0xff;
    for (int i = 0; i < 3; ++i) round();
    return v0_ ^ v1_ ^ v2_ ^ v3_;
  }

 private:
  void round() {
    v0_ += v1_, v1_ = std::rotl(v1_, 13) ^ v0_, v0_ = std::rotl(v0_, 32);
    v2_ += v3_, v3_ = std::rotl(v3_, 16) ^ v2_;
    v0_ += v3_, v3_ = std::rotl(v3_, 21) ^ v0_;
    v2_ += v1_, v1_ = std::rotl(v1_, 17) ^ v2_, v2_ = std::rotl(v2_, 32);
  }
  uint64_t v0_, v1_, v2_, v3_;
};

}  // namespace gemma4
