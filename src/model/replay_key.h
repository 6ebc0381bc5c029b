// Keys of Backend::replay(): what one model recorded must never run for another, nor for other buffers.
#pragma once

#include <atomic>
#include <cstdint>

namespace gemma4 {

// The upper half of a key, never given out before; the lower half is the caller's.
inline uint64_t next_replay_key() {
  static std::atomic<uint64_t> owners{0};
  return ++owners << 32;
}

}  // namespace gemma4
