// What the two prefill kernels share: the rows of a tile, what they may see, and the softmax.
//
// A tile of queries is a few tokens times the query heads of one KV head: tile row m is token m / group, head m %
// group. The tokens of a tile may belong to several sequences (several prompts in one batch); they are served run by
// run.
#pragma once

#include <climits>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/kv_cache.cuh"
#include "backend/cuda/device/activation.cuh"
#include "backend/cuda/device/cp_async.cuh"
#include "backend/cuda/device/element.cuh"
#include "backend/cuda/device/mma.cuh"

namespace gemma4::cuda {

using bf16 = __nv_bfloat16;

// Consecutive tokens begin .. end-1 of a tile that share a sequence, and the keys they see.
struct Run {
  int seq, begin, end;
  int first, last;          // keys that some token sees
  int all_first, all_last;  // keys that every token sees
};

// The run that begins at token `begin`; `see` [tokens] in shared memory. Every warp works it out, lane by lane.
__device__ __forceinline__ Run next_run(const int4* see, int begin, int tokens) {
  constexpr unsigned kLanes = 0xffffffffu;
  const int lane = threadIdx.x % 32, seq = see[begin].x;
  int4 mine = {INT_MAX, INT_MIN, INT_MAX, INT_MIN};  // least and greatest first, least and greatest last
  int end = begin;
  for (int same = 32; same == 32;) {
    const int token = end + lane;
    const unsigned other = __ballot_sync(kLanes, token >= tokens || see[token].x != seq);
    same = other ? __ffs(other) - 1 : 32;
    if (lane < same) {
      const int4 row = see[token];
      mine = {min(mine.x, row.z), max(mine.y, row.z), min(mine.z, row.w), max(mine.w, row.w)};
    }
    end += same;
  }
  return {seq,
          begin,
          end,
          __reduce_min_sync(kLanes, mine.x),
          __reduce_max_sync(kLanes, mine.w),
          __reduce_max_sync(kLanes, mine.y),
          __reduce_min_sync(kLanes, mine.z)};
}

// Element offset of 8-element chunk `chunk` of row `row` in a tile of kTileRows rows (device/group.cuh).
template <int kTileRows>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
  return chunk * kTileRows * 8 + row / 8 * 64 + row % 8 * 8;
}

// The two rows of a 16-row fragment that a lane holds, and their running softmax (base 2).
struct RowState {
  int first, last;   // keys seen; last < first: none of this run
  float top, total;  // of the scores so far
};

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Turns a fragment of scores c [16, 8 * kTiles] into softmax weights (kWeightLift) in place; returns by what the sums
// so far must be multiplied (keep0 for row lane/4, keep1 for row lane/4 + 8).
template <int kTiles>
__device__ __forceinline__ float2 soften(float (&c)[kTiles][4], RowState (&state)[2], int base, bool masked) {
  const int lane = threadIdx.x % 32;
  float2 keep;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    RowState& row = state[half];
    float top = row.top;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = c[t][2 * half + i];
        if (masked) {
          const int key = base + t * 8 + lane % 4 * 2 + i;
          if (key < row.first || key > row.last) x = -INFINITY;
        }
        top = fmaxf(top, x);
      }
    }
    top = quad_max(top);
    const float shift = top == -INFINITY ? 0.0f : fmaf(top, kLog2e, -kWeightLift);
    const float factor = top == -INFINITY ? 1.0f : exp2_fast((row.top - top) * kLog2e);
    row.top = top;
    float sum = 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = c[t][2 * half + i];
        x = exp2_fast(fmaf(x, kLog2e, -shift));
        sum += x;
      }
    }
    row.total = row.total * factor + sum;  // of this lane's keys alone; the quad is summed at the end
    (half ? keep.y : keep.x) = factor;
  }
  return keep;
}

}  // namespace gemma4::cuda
