// Where a key-value cache's elements lie, on the device. See KvCacheView in ops.h.
#pragma once

#include <cuda_bf16.h>

#include "backend/cuda/ops/ops.h"

namespace gemma4::cuda {

// Elements before the row of a slot among those of one head and page, and before element e of a row: for all but tiled
// caches slot * row and e.
__device__ __forceinline__ int64_t kv_row(const KvCacheView& kv, int64_t slot) {
  return kv.tiled ? slot / 8 * 8 * kv.row + slot % 8 * 8 : slot * kv.row;
}
__device__ __forceinline__ int kv_element(const KvCacheView& kv, int e) { return kv.tiled ? e / 8 * 64 + e % 8 : e; }

// Elements before the row of position `pos` of sequence `seq`, KV head `head`. Cheap where it matters: no division in a
// paged cache whose pages are a power of two.
__device__ __forceinline__ int64_t kv_place(const KvCacheView& kv, int seq, int pos, int head) {
  const int64_t head_at = int64_t{head} * kv.page * kv.row;
  if (!kv.table) return head_at + kv_row(kv, pos);  // one page of all slots
  int page, within;
  if (kv.page_shift >= 0) {
    page = pos >> kv.page_shift, within = pos & (kv.table_page - 1);
  } else {
    page = pos / kv.table_page, within = pos % kv.table_page;
  }
  if (page >= kv.table_cols) page %= kv.table_cols;  // a ring that has wrapped
  const int64_t entry = __ldg(kv.table + seq * kv.table_stride + page);
  if (kv.page == kv.table_page) return ((entry * kv.heads + head) * kv.page + within) * kv.row;
  return head_at + kv_row(kv, entry * kv.table_page + within);  // table pages inside one page of all slots
}

// Where a compressed row keeps K's element `e`, or -1 where it does not.
__device__ __forceinline__ int kv_rotated_index(const KvCacheView& kv, int e) {
  const int half = kv.dim / 2, i = e < half ? e : e - half;
  return i < kv.rotated ? kv.dim + (e < half ? 0 : kv.rotated) + i : -1;
}

}  // namespace gemma4::cuda
