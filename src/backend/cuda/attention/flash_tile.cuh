// What flash_prefill_kernel and flash_prefill_d512_kernel share: the query tile, masks, the online softmax, the output.
//
// A query tile is a few tokens times the query heads of one KV head: tile row m is token m / group, head m % group. The
// tokens of a tile may belong to several sequences (several prompts in one batch). The kernels process them run by run;
// a run is a range of tokens of one sequence.
#pragma once

#include <climits>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/kv_cache.cuh"
#include "backend/cuda/device/activation.cuh"
#include "backend/cuda/device/cp_async.cuh"
#include "backend/cuda/device/element.cuh"
#include "backend/cuda/device/activation.cuh"
#include "backend/cuda/device/cp_async.cuh"
#include "backend/cuda/device/mma.cuh"
#include "backend/cuda/device/wgmma.cuh"

namespace gemma4::cuda {

using bf16 = __nv_bfloat16;


// The tokens of a CTA's query tile.
struct QueryTile {
  int group;           // query heads of a KV head
  int kv_head;         // blockIdx.x
  int token0, tokens;  // first token, and how many
  int first_row;       // of the two tile rows of this lane: first_row and first_row + 8
};

// Grid: (KV heads, query tiles). The last query tile, which is the longest under a causal mask, runs first. A warpgroup
// has 64 rows; where kWarpgroupsShareRows, all warpgroups have the same 64.
template <int kRows, bool kWarpgroupsShareRows>
__device__ __forceinline__ QueryTile query_tile(const AttentionCall& call, const KvCacheView& kv) {
  QueryTile tile;
  tile.group = call.q_heads / kv.heads;
  tile.kv_head = blockIdx.x;
  tile.token0 = (gridDim.y - 1 - blockIdx.y) * (kRows / tile.group);
  tile.tokens = min(kRows / tile.group, call.count - tile.token0);
  const int warp = kWarpgroupsShareRows ? threadIdx.x / 32 % 4 : threadIdx.x / 32;
  tile.first_row = warp * 16 + threadIdx.x % 32 / 4;
  return tile;
}

// Copies the Row of each token of the tile into shared memory, [tokens].
template <int kThreads>
__device__ __forceinline__ void load_row_masks(int4* row_masks, const AttentionCall& call, const QueryTile& tile) {
  for (int i = threadIdx.x; i < tile.tokens; i += kThreads) {
    row_masks[i] = reinterpret_cast<const int4*>(call.rows)[tile.token0 + i];
  }
}

// Tokens begin .. end-1 of a tile, all of one sequence, and the keys they see.
struct Run {
  int seq, begin, end;
  int first, last;          // keys that at least one token sees
  int all_first, all_last;  // keys that every token sees
  bool whole;               // the run has all tokens of the tile

  // Whether some token does not see all of the kKeys keys from `key` on.
  template <int kKeys>
  __device__ __forceinline__ bool masked(int key) const {
    return !whole || key < all_first || key + kKeys - 1 > all_last;
  }
};

// The run that begins at token `begin`; row_masks [tokens] in shared memory. Every warp computes it on its own.
__device__ __forceinline__ Run next_run(const int4* row_masks, int begin, int tokens) {
  constexpr unsigned kLanes = 0xffffffffu;
  const int lane = threadIdx.x % 32, seq = row_masks[begin].x;
  int4 mine = {INT_MAX, INT_MIN, INT_MAX, INT_MIN};  // smallest and largest first key, smallest and largest last key
  int end = begin;
  for (int same = 32; same == 32;) {
    const int token = end + lane;
    const unsigned other = __ballot_sync(kLanes, token >= tokens || row_masks[token].x != seq);
    same = other ? __ffs(other) - 1 : 32;
    if (lane < same) {
      const int4 row = row_masks[token];
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
          __reduce_min_sync(kLanes, mine.z),
          begin == 0 && end == tokens};
}

// Element offset of 8-element vector `vec` of row `row` in a tile of kTileRows rows (device/wgmma.cuh).
template <int kTileRows>
__device__ __forceinline__ int vec_offset(int row, int vec) {
  return vec * kTileRows * 8 + row / 8 * 64 + row % 8 * 8;
}

// One of the two rows of a 16-row fragment that a lane holds, and its online softmax (base 2).
struct RowState {
  int first, last;   // keys that the row sees; last < first: the row is not of this run
  float top, total;  // largest score so far, and the sum of the weights
};

// The keys that this lane's two rows see in `run`.
__device__ __forceinline__ void set_intervals(RowState (&state)[2], const int4* row_masks, const QueryTile& tile,
                                              const Run& run) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = (tile.first_row + i * 8) / tile.group;
    const bool mine = token >= run.begin && token < run.end;
    state[i].first = mine ? row_masks[token].z : 1;
    state[i].last = mine ? row_masks[token].w : 0;
  }
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Turns a fragment of scores c [16, 8 * kTiles] into softmax weights (times 2^kWeightLift) in place. Returns the
// factors by which the output so far must be multiplied: x for row lane / 4, y for row lane / 4 + 8.
template <int kTiles>
__device__ __forceinline__ float2 online_softmax(float (&c)[kTiles][4], RowState (&state)[2], int base, bool masked) {
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
    row.total = row.total * factor + sum;  // over this lane's keys only; the quad's sum is taken at the end
    (half ? keep.y : keep.x) = factor;
  }
  return keep;
}

// Softmax weights in float16, as the A operand of the product with the values.
template <int kSteps>
__device__ __forceinline__ void pack_weights(uint32_t (&weights)[kSteps][4], const float (&c)[2 * kSteps][4]) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const auto &low = c[2 * step], &high = c[2 * step + 1];
    weights[step][0] = pack_attention(low[0], low[1]);
    weights[step][1] = pack_attention(low[2], low[3]);
    weights[step][2] = pack_attention(high[0], high[1]);
    weights[step][3] = pack_attention(high[2], high[3]);
  }
}

// The output so far, after the largest score has changed.
template <int kColTiles>
__device__ __forceinline__ void rescale(float (&sum)[kColTiles][4], float2 keep) {
#pragma unroll
  for (int t = 0; t < kColTiles; ++t) {
    sum[t][0] *= keep.x, sum[t][1] *= keep.x;
    sum[t][2] *= keep.y, sum[t][3] *= keep.y;
  }
}

// Waits until all but the newest kPending copies of the CTA are in shared memory, where the tensor cores may read them.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  copy_wait<kPending>();
  fence_async();
  __syncthreads();
}

// Writes this lane's two rows of the output, columns col0 .. col0 + 8 * kColTiles - 1 of each head of kDim.
template <int kDim, int kColTiles>
__device__ __forceinline__ void store_output(const AttentionCall& call, const QueryTile& tile, int col0,
                                             const RowState (&state)[2], const float (&sum)[kColTiles][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int m = tile.first_row + i * 8, token = m / tile.group;
    const float total = quad_sum(state[i].total), factor = total > 0 ? 1.0f / total : 0.0f;
    if (token >= tile.tokens) continue;
    bf16* out = static_cast<bf16*>(call.out) + (tile.token0 + token) * call.out_stride +
                (tile.kv_head * tile.group + m % tile.group) * kDim + col0;
#pragma unroll
    for (int t = 0; t < kColTiles; ++t) {
      const float* x = sum[t] + 2 * i;
      *reinterpret_cast<uint32_t*>(out + t * 8 + lane % 4 * 2) = pack_bf16x2(x[0] * factor, x[1] * factor);
    }
  }
}

}  // namespace gemma4::cuda
