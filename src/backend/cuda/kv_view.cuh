// Where a key-value cache's elements lie, on the device. See KvView in verbs.h.
#pragma once

#include <cuda_bf16.h>

#include "backend/cuda/verbs.h"

namespace gemma4::cuda {

__device__ __forceinline__ int64_t kv_slot(const KvView& kv, int seq, int pos) {
  if (!kv.table) return pos;
  const int page = pos / kv.table_page;
  return static_cast<int64_t>(kv.table[seq * kv.table_stride + page % kv.table_cols]) * kv.table_page +
         pos % kv.table_page;
}

// Elements before the row of (slot, head).
__device__ __forceinline__ int64_t kv_offset(const KvView& kv, int64_t slot, int head) {
  return ((slot / kv.page * kv.heads + head) * kv.page + slot % kv.page) * kv.row;
}

__device__ __forceinline__ __nv_bfloat16* kv_key(const KvView& kv, int64_t slot, int head) {
  return static_cast<__nv_bfloat16*>(kv.k) + kv_offset(kv, slot, head);
}
__device__ __forceinline__ __nv_bfloat16* kv_value(const KvView& kv, int64_t slot, int head) {
  return static_cast<__nv_bfloat16*>(kv.v) + kv_offset(kv, slot, head);
}

// Where a compressed row keeps K's element `e`, or -1 where it does not.
__device__ __forceinline__ int kv_rotated_index(const KvView& kv, int e) {
  const int half = kv.dim / 2, i = e < half ? e : e - half;
  return i < kv.rotated ? kv.dim + (e < half ? 0 : kv.rotated) + i : -1;
}

}  // namespace gemma4::cuda
