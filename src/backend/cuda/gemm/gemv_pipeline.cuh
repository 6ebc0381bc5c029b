// What the GEMV kernels share (gemv_bf16.cu, gemv_int8.cu; the decode megakernel takes the constants): how the weight
// tiles of a packed matrix are divided over the blocks, how a producer warp streams them through shared memory, and how
// blocks sum a row tile of 128 rows that several of them share.
//
// The work unit is one column range of a row tile: 8 weight tiles, contiguous in memory. Block b of `blocks` computes a
// contiguous range of work units, row tile by row tile.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>

#include "backend/cuda/device/activation.cuh"
#include "backend/cuda/device/cp_async.cuh"
#include "backend/cuda/device/tma.cuh"
#include "backend/cuda/device/warp_load.cuh"
#include "backend/cuda/gemm/kernels.h"
#include "backend/cuda/gemm/layout_codec.cuh"
#include "backend/cuda/gemm/product_arguments.h"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {

constexpr int kConsumerWarps = kRowTileTiles;  // each multiplies 16 rows of the row tile
// More in flight are worse: all other loads of an SM queue behind them. On an H200 the GEMVs of a step of 8 rows take
// 7.1 ms with 4 stages (20 KB each) and 7.8 with 9.
constexpr int kMaxStages = 4;
constexpr int kSharedBytes = 226 << 10;       // nearly all of Hopper's, so that one block fits an SM
constexpr int kSharedStatic = 1 << 10;        // of what a block may have: barriers, and room to align the stages
constexpr uint32_t kNotWritten = 0xffffffff;  // a NaN that no arithmetic makes

struct GemvArguments {
  const uint8_t* weights;
  const __nv_bfloat16* x;
  void* out;
  float* partials;
  int64_t x_stride, out_stride;       // elements
  int n, rows, col_tiles, row_tiles;  // col_tiles: cols / 64
  bool paired, geglu, out_f32;
  bool bulk_copies;  // else the lanes of the producer warp copy
  int stages, stage_bytes;
};

inline GemvArguments gemv_arguments(const LinearCall& call, const GemvWorkspace& workspace) {
  const DeviceMatrix& w = call.w;
  CHECK((w.rows / kRowTileRows + 1) * (w.cols / kWeightTileCols) < (int64_t{1} << 31));
  GemvArguments p = {};
  set_product(p, call);
  p.x = static_cast<const __nv_bfloat16*>(call.x.data), p.x_stride = call.x.stride;
  p.partials = workspace.partials, p.bulk_copies = workspace.bulk_copies;
  return p;
}

inline unsigned gemv_blocks(const GemvArguments& p, const GemvWorkspace& workspace) {
  return static_cast<unsigned>(std::min<int64_t>(workspace.blocks, static_cast<int64_t>(p.row_tiles) * p.col_tiles));
}

// The work units [begin, end) of a block. Work unit = row tile * col_tiles + column range.
struct WorkRange {
  int begin, end;
  __device__ WorkRange(int block, int blocks, uint32_t work_units)
      : begin(static_cast<int>(work_units * static_cast<uint64_t>(block) / static_cast<uint32_t>(blocks))),
        end(static_cast<int>(work_units * static_cast<uint64_t>(block + 1) / static_cast<uint32_t>(blocks))) {}
};

// Walks a range stage by stage: up to kStageTiles work units of one row tile at a time. All warps of a block walk the
// same way; load i goes to stage i % stages.
template <int kStageTiles>
struct Cursor {
  int left, col_tiles, stages, row_tile, col, length, stage = 0, phase = 0;
  __device__ Cursor(const WorkRange& range, const GemvArguments& p)
      : left(range.end - range.begin),
        col_tiles(p.col_tiles),
        stages(p.stages),
        row_tile(range.begin / col_tiles),
        col(range.begin - row_tile * col_tiles) {
    measure();
  }
  __device__ void measure() { length = min(min(left, col_tiles - col), kStageTiles); }
  __device__ bool more() const { return left > 0; }
  __device__ bool ends_row_tile() const { return col + length == col_tiles; }
  __device__ void next() {
    left -= length, col += length;
    if (col == col_tiles) col = 0, ++row_tile;
    if (++stage == stages) stage = 0, phase ^= 1;
    measure();
  }
};

template <typename Codec, int kStageTiles, int kXPitch>
__device__ __forceinline__ void load_x(const GemvArguments& p, uint8_t* to, uint64_t* full,
                                       const Cursor<kStageTiles>& at, int lane) {
  if (lane < p.n) {
    bulk_load(to + lane * kXPitch, p.x + lane * p.x_stride + at.col * kWeightTileCols, at.length * kWeightTileCols * 2,
              full);
  }
}

template <typename Codec, int kStageTiles>
__device__ __forceinline__ void load_weights(const GemvArguments& p, uint8_t* stage, uint64_t* full,
                                             const Cursor<kStageTiles>& at, uint64_t policy) {
  constexpr int kUnitBytes = kRowTileTiles * Codec::kBytes;
  const uint32_t bytes = at.length * kUnitBytes;
  barrier_expect(full, bytes + p.n * at.length * kWeightTileCols * 2);
  bulk_load(stage, p.weights + (static_cast<int64_t>(at.row_tile) * p.col_tiles + at.col) * kUnitBytes, bytes, full,
            policy);
}

// Without bulk copies there are two producer warps: one takes too long to issue the copies of a stage.
constexpr int kCopyThreads = 64;

// Arrivals that complete a phase of a `full` barrier: the thread that starts bulk copies, or each thread that copies.
__device__ __forceinline__ int full_arrivals(const GemvArguments& p) { return p.bulk_copies ? 1 : kCopyThreads; }

// A producer thread on a device without bulk copies: weights and x of each stage that becomes free.
template <typename Codec, int kStageTiles, int kXPitch>
__device__ void copy_loop(const GemvArguments& p, const WorkRange& range, uint8_t* shared, int x_offset, uint64_t* full,
                          uint64_t* empty, int thread) {
  constexpr int kUnitBytes = kRowTileTiles * Codec::kBytes;
  const int lane = thread % 32;
  const uint64_t policy = policy_evict_first();
  grid_release();
  grid_wait();
  for (Cursor<kStageTiles> at(range, p); at.more(); at.next()) {
    barrier_wait(&empty[at.stage], at.phase ^ 1);
    uint8_t* stage = shared + at.stage * p.stage_bytes;
    load_by_threads<kCopyThreads>(stage,
                                  p.weights + (static_cast<int64_t>(at.row_tile) * p.col_tiles + at.col) * kUnitBytes,
                                  at.length * kUnitBytes, thread, policy);
    const int vectors = at.length * kWeightTileCols / 8;  // of a row of x, 32 at most
    static_assert(kStageTiles * kWeightTileCols / 8 <= 32);
    for (int row = thread / 32; lane < vectors && row < p.n; row += kCopyThreads / 32) {
      copy16_async(stage + x_offset + row * kXPitch + lane * 16,
                   p.x + row * p.x_stride + at.col * kWeightTileCols + lane * 8, true);
    }
    barrier_arrive_after_copies(&full[at.stage]);
  }
}

// The threads of a block of `threads` with one producer warp.
inline unsigned block_threads(const GemvArguments& p, int threads) {
  return static_cast<unsigned>(threads + (p.bulk_copies ? 0 : kCopyThreads - 32));
}

// The producer warp, with bulk copies. It loads the weights of the first stages before earlier kernels are complete,
// then their x, then both for each stage that becomes free. x begins `x_offset` bytes into a stage, and its rows are
// kXPitch bytes apart.
template <typename Codec, int kStageTiles, int kXPitch>
__device__ void producer_loop(const GemvArguments& p, const WorkRange& range, uint8_t* shared, int x_offset,
                              uint64_t* full, uint64_t* empty, int thread) {
  if (!p.bulk_copies) {
    return copy_loop<Codec, kStageTiles, kXPitch>(p, range, shared, x_offset, full, empty, thread);
  }
  const int lane = thread;
  const uint64_t policy = policy_evict_first();
  Cursor<kStageTiles> at(range, p);
  for (int i = 0; i < p.stages && at.more(); ++i, at.next()) {
    if (lane == 0) {
      load_weights<Codec>(p, shared + at.stage * p.stage_bytes, &full[at.stage], at, policy);
    }
  }
  grid_release();
  grid_wait();
  __syncwarp();
  Cursor<kStageTiles> first(range, p);
  for (int i = 0; i < p.stages && first.more(); ++i, first.next()) {
    load_x<Codec, kStageTiles, kXPitch>(p, shared + first.stage * p.stage_bytes + x_offset, &full[first.stage], first,
                                        lane);
  }
  for (; at.more(); at.next()) {
    barrier_wait(&empty[at.stage], at.phase ^ 1);
    if (lane == 0) {
      load_weights<Codec>(p, shared + at.stage * p.stage_bytes, &full[at.stage], at, policy);
    }
    __syncwarp();
    load_x<Codec, kStageTiles, kXPitch>(p, shared + at.stage * p.stage_bytes + x_offset, &full[at.stage], at, lane);
  }
}

// Four sums of one lane: [block][warp][x tile][lane] of float4.
template <int kXTiles>
__device__ float4* partial_slot(const GemvArguments& p, int block, int x_tile, int warp, int lane) {
  return reinterpret_cast<float4*>(p.partials) +
         ((static_cast<int64_t>(block) * kConsumerWarps + warp) * 2 + x_tile) * 32 + lane;
}

// Hands this block's partial of a row tile to the block that computes the row tile's end.
template <int kXTiles>
__device__ void store_partials(const GemvArguments& p, int warp, int lane, const float (&sum)[kXTiles][4]) {
#pragma unroll
  for (int x_tile = 0; x_tile < kXTiles; ++x_tile) {
    store_relaxed(partial_slot<kXTiles>(p, blockIdx.x, x_tile, warp, lane),
                  make_float4(sum[x_tile][0], sum[x_tile][1], sum[x_tile][2], sum[x_tile][3]));
  }
}

__device__ __forceinline__ bool written(const float4& v) {
  return __float_as_uint(v.x) != kNotWritten && __float_as_uint(v.y) != kNotWritten &&
         __float_as_uint(v.z) != kNotWritten && __float_as_uint(v.w) != kNotWritten;
}

// Adds the partials of the blocks before this one that have work units from `row_tile_begin` on, in block order, and
// resets their slots. Four are read at once: a single read takes most of a microsecond.
template <int kXTiles>
__device__ void reduce_partials(const GemvArguments& p, int blocks, int row_tile_begin, int warp, int lane,
                                float (&sum)[kXTiles][4]) {
  constexpr int kAtOnce = 4;
  const uint32_t work_units = static_cast<uint32_t>(p.row_tiles) * p.col_tiles;
  const float not_written = __uint_as_float(kNotWritten);
  const int last = static_cast<int>(blockIdx.x);
  int first = last;
  while (first > 0 && WorkRange(first - 1, blocks, work_units).end > row_tile_begin) --first;
  for (int block = first; block < last; block += kAtOnce) {
#pragma unroll
    for (int x_tile = 0; x_tile < kXTiles; ++x_tile) {
      float4 values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (block + i < last) values[i] = load_relaxed(partial_slot<kXTiles>(p, block + i, x_tile, warp, lane));
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (block + i >= last) continue;
        float4* slot = partial_slot<kXTiles>(p, block + i, x_tile, warp, lane);
        while (!written(values[i])) values[i] = load_relaxed(slot);
        sum[x_tile][0] += values[i].x, sum[x_tile][1] += values[i].y;
        sum[x_tile][2] += values[i].z, sum[x_tile][3] += values[i].w;
        store_relaxed(slot, make_float4(not_written, not_written, not_written, not_written));
      }
    }
  }
}

}  // namespace gemma4::cuda
