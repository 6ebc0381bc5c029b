// The attention kernels and what chooses between them (attend.cu).
#pragma once

#include "backend/cuda/ops/ops.h"

namespace gemma4::cuda {

// One launch of attention: out BF16, q attend_t (device/element.cuh), both [rows, q_heads, dim] with row strides; each
// row with its interval.
struct AttendCall {
  void* out;
  const void* q;
  const int32_t* rows;  // [count, 4] Row
  int64_t out_stride, q_stride;
  int count, q_heads;
};

// Any head size up to 512, any grouping: a block for each row and head. The yardstick, and the path of odd shapes.
void attend_simple(cudaStream_t stream, const AttendCall& call, const KvCacheView& kv);

// Few rows, long caches: keys split over blocks, every query head of a KV head together, partial results merged by the
// last block to finish. Head sizes 256 and 512.
bool decode_fits(const AttendCall& call, const KvCacheView& kv, const AttendScratch& scratch);
void attend_decode(cudaStream_t stream, const AttendCall& call, const KvCacheView& kv, const AttendScratch& scratch);

// Many rows: flash attention on the tensor cores of Hopper. Head sizes 72, 256 and 512.
bool prefill_fits(const AttendCall& call, const KvCacheView& kv);
void attend_prefill(cudaStream_t stream, const AttendCall& call, const KvCacheView& kv);
void attend_prefill_wide(cudaStream_t stream, const AttendCall& call, const KvCacheView& kv);  // head size 512

// Whole images: head size 72, as many KV heads as query heads, a cache without a page table.
bool vision_fits(const AttendCall& call, const KvCacheView& kv);
void attend_vision(cudaStream_t stream, const AttendCall& call, const KvCacheView& kv, int multiprocessors);

}  // namespace gemma4::cuda
