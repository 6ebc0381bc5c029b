// What attention reads: rows (which keys a token may see) and the key-value cache that holds those keys.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/tensor.h"

namespace gemma4 {

// One row of attention: the token at position `pos` of sequence `seq` may see that sequence's keys first..last,
// inclusive. Causal, sliding-window, image-block and whole-image attention are all this.
struct Row {
  int32_t seq, pos, first, last;
};

// The rows of one forward pass, on the device and on the host (the same content). A replayed graph reads only `device`.
struct Rows {
  Tensor device;              // I32 [rows, 4]
  std::span<const Row> host;  // [rows]
};

// The size of the key-value cache of one layer.
struct KvCacheConfig {
  int64_t slots = 0;       // tokens
  int page = 1;            // tokens in a page
  int heads = 0, dim = 0;  // KV heads, head size
  // Full-attention layers have V = norm(k_proj x) and K = rope(V * k_norm), so a backend may store V and only the
  // rotated elements of K (2 * rotated_pairs of dim). 0: K is unrelated to V and stored whole.
  int rotated_pairs = 0;
  // cpu, where Backend::allow_bf16() has effect: queries, keys, values and probabilities are rounded to bf16. Otherwise
  // attention keeps what the rounding leaves of each.
  bool rounds = false;
};

// A key-value cache. Position p of sequence s lives in slot
//   pages[s][(p / page) % n] * page + p % page,   n = pages of that sequence,
// This is a flat cache while p < n * page, and a ring of n * page tokens beyond. Without `pages`: slot = p.
struct KvCache {
  Tensor k, v;   // [slots, heads, dim], or the backend's own layout
  Tensor pages;  // I32 [sequences, n] page indices
  int page = 1;
  Tensor k_norm;  // [dim], set where KvCacheConfig::rotated_pairs > 0
  int rotated_pairs = 0;
  std::shared_ptr<const void> extra;  // the backend's own

  // Slots of one sequence.
  int64_t slots_per_seq() const { return pages ? pages.row_size() * page : k.rows(); }
};

// The positions of a sequence, at most, from the oldest that `rows` write to the newest. Where they are more than its
// slots, a key overwrites another of the same pass.
int64_t positions_written(std::span<const Row> rows);

// The same from the oldest position that `rows` read. All keys of a pass are written before the first is read, so where
// they are more than its slots, a key that a row needs is gone.
int64_t positions_held(std::span<const Row> rows);

}  // namespace gemma4
