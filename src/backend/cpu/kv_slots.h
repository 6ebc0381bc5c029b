// Where the cpu backend's KV cache keeps a position (KvLayout), and which positions rows see.
#pragma once

#include <algorithm>
#include <span>

#include "backend/cpu/cpu_backend.h"
#include "backend/kv_cache.h"

namespace gemma4::cpu {

constexpr int64_t kTileKeys = 32;  // keys side by side

inline int64_t slot_of(const KvCache& kv, int32_t seq, int64_t pos) {
  if (!kv.pages) return pos;
  const int32_t* pages = kv.pages.row<const int32_t>(seq);
  return pages[(pos / kv.page) % kv.pages.row_size()] * static_cast<int64_t>(kv.page) + pos % kv.page;
}

// Whether the 32 positions of a tile (which begins at a multiple of 32) are 32 slots one after the other.
inline bool whole_tiles(const KvCache& kv) { return !kv.pages || kv.page % kTileKeys == 0; }

// to [dim] [32] = the keys of a KV head at positions pos .. pos + 31 of a sequence; beyond `last` its key again.
inline void gather_keys(const KvLayout& c, const KvCache& kv, int64_t head, int32_t seq, int64_t pos, int64_t last,
                        float* to) {
  for (int64_t i = 0; i < kTileKeys; ++i) {
    const int64_t slot = slot_of(kv, seq, std::min(pos + i, last));
    const float* from = c.keys + (head * c.slots + slot / kTileKeys * kTileKeys) * c.dim + slot % kTileKeys;
    for (int64_t k = 0; k < c.dim; ++k) to[k * kTileKeys + i] = from[k * kTileKeys];
  }
}

// Positions first .. last.
struct KeySpan {
  int64_t first, last;
};

// From the first to the last that some row sees; at least one row.
inline KeySpan keys_of(std::span<const Row> rows) {
  KeySpan span{rows[0].first, rows[0].last};
  for (const Row& row : rows) {
    span.first = std::min<int64_t>(span.first, row.first);
    span.last = std::max<int64_t>(span.last, row.last);
  }
  return span;
}

}  // namespace gemma4::cpu
