// Keys of Backend::replay(): a graph that one model recorded must never run for another model or for other buffers.
#pragma once

#include <atomic>
#include <cstdint>

namespace gemma4 {

// The upper half of a key, which no earlier call returned. The caller chooses the lower half.
inline uint64_t next_graph_key() {
  static std::atomic<uint64_t> owners{0};
  return ++owners << 32;
}

}  // namespace gemma4
