// What the kernels of few rows share (linear_decode.cu, linear_fixed.cu): how the chunks of a packed matrix are dealt
// to the blocks and walked stage by stage, and how blocks add up a panel of 128 rows that several of them hold.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>

#include "backend/cuda/device/tma.cuh"
#include "backend/cuda/gemm/gemv_bf16.h"
#include "backend/cuda/gemm/layout_codec.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {

constexpr int kStreamWarps = kPanelChunks;  // that compute, each 16 rows of the panel
constexpr int kMaxStages = 12;
constexpr int kSharedBytes = 226 << 10;    // nearly all of Hopper's, so that one block fits a multiprocessor
constexpr int kSharedStatic = 1 << 10;     // of what a block may have: barriers, and room to align the ring
constexpr uint32_t kNothing = 0xffffffff;  // a NaN that no arithmetic makes

struct StreamArguments {
  const uint8_t* weights;
  const __nv_bfloat16* x;
  void* out;
  float* partial;
  int64_t x_stride, out_stride;  // elements
  int n, rows, chunks, panels;   // chunks: of 64 columns
  bool paired, geglu, out_f32;
  int stages, stage_bytes;
};

inline StreamArguments stream_arguments(const Tensor& out, const Tensor& x, const DeviceMatrix& w, bool geglu,
                                        const DecodeWorkspace& workspace) {
  CHECK(w.layout != Layout::kBF16 && w.cols % kChunkCols == 0);
  CHECK((w.rows / kPanelRows + 1) * (w.cols / kChunkCols) < (int64_t{1} << 31));
  StreamArguments p = {};
  p.weights = static_cast<const uint8_t*>(w.data);
  p.x = static_cast<const __nv_bfloat16*>(x.data);
  p.out = out.data;
  p.partial = workspace.partial;
  p.x_stride = x.stride, p.out_stride = out.stride;
  p.n = static_cast<int>(x.rows()), p.rows = static_cast<int>(w.rows);
  p.chunks = static_cast<int>(w.cols / kChunkCols);
  p.panels = static_cast<int>((w.rows + kPanelRows - 1) / kPanelRows);
  p.paired = w.paired, p.geglu = geglu, p.out_f32 = out.dtype == DType::kF32;
  return p;
}

inline unsigned stream_blocks(const StreamArguments& p, const DecodeWorkspace& workspace) {
  return static_cast<unsigned>(std::min<int64_t>(workspace.blocks, static_cast<int64_t>(p.panels) * p.chunks));
}

// The units [begin, end) of a block; unit = panel * chunks + column chunk.
struct Range {
  int begin, end;
  __device__ Range(int block, int blocks, uint32_t units)
      : begin(static_cast<int>(units * static_cast<uint64_t>(block) / static_cast<uint32_t>(blocks))),
        end(static_cast<int>(units * static_cast<uint64_t>(block + 1) / static_cast<uint32_t>(blocks))) {}
};

// Walks a range in pieces of up to kStageChunks units of one panel. All warps of a block take the same pieces; piece
// `turn` is in stage turn % stages.
template <int kStageChunks>
struct Cursor {
  int left, chunks, stages, panel, col, length, stage = 0, phase = 0;
  __device__ Cursor(const Range& range, const StreamArguments& p)
      : left(range.end - range.begin),
        chunks(p.chunks),
        stages(p.stages),
        panel(range.begin / chunks),
        col(range.begin - panel * chunks) {
    measure();
  }
  __device__ void measure() { length = min(min(left, chunks - col), kStageChunks); }
  __device__ bool more() const { return left > 0; }
  __device__ bool ends_panel() const { return col + length == chunks; }
  __device__ void next() {
    left -= length, col += length;
    if (col == chunks) col = 0, ++panel;
    if (++stage == stages) stage = 0, phase ^= 1;
    measure();
  }
};

__device__ __forceinline__ float gelu_tanh(float x) {
  const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  // tanh(y) = 1 - 2 / (exp(2 y) + 1); exp overflows to infinity, which gives 1
  return 0.5f * x * (2.0f - 2.0f / (__expf(2.0f * inner) + 1.0f));
}

// The copying warp: weights of the first stages before earlier kernels are done, then x, then both as stages get free.
// x lies `x_offset` bytes into a stage, its rows kXPitch bytes apart.
template <typename Codec, int kStageChunks, int kXPitch>
__device__ __forceinline__ void copy_x(const StreamArguments& p, uint8_t* to, uint64_t* full,
                                       const Cursor<kStageChunks>& at, int lane) {
  if (lane < p.n) {
    bulk_load(to + lane * kXPitch, p.x + lane * p.x_stride + at.col * kChunkCols, at.length * kChunkCols * 2, full);
  }
}

template <typename Codec, int kStageChunks>
__device__ __forceinline__ void copy_weights(const StreamArguments& p, uint8_t* stage, uint64_t* full,
                                             const Cursor<kStageChunks>& at, uint64_t policy) {
  constexpr int kUnit = kPanelChunks * Codec::kBytes;
  const uint32_t bytes = at.length * kUnit;
  barrier_expect(full, bytes + p.n * at.length * kChunkCols * 2);
  bulk_load(stage, p.weights + (static_cast<int64_t>(at.panel) * p.chunks + at.col) * kUnit, bytes, full, policy);
}

template <typename Codec, int kStageChunks, int kXPitch>
__device__ void copy_range(const StreamArguments& p, const Range& range, uint8_t* shared, int x_offset, uint64_t* full,
                           uint64_t* empty, int lane) {
  const uint64_t policy = policy_evict_first();
  Cursor<kStageChunks> at(range, p);
  for (int i = 0; i < p.stages && at.more(); ++i, at.next()) {  // before earlier kernels are done
    if (lane == 0) {
      copy_weights<Codec>(p, shared + at.stage * p.stage_bytes, &full[at.stage], at, policy);
    }
  }
  grid_release();
  grid_wait();
  __syncwarp();
  Cursor<kStageChunks> first(range, p);
  for (int i = 0; i < p.stages && first.more(); ++i, first.next()) {
    copy_x<Codec, kStageChunks, kXPitch>(p, shared + first.stage * p.stage_bytes + x_offset, &full[first.stage], first,
                                         lane);
  }
  for (; at.more(); at.next()) {
    barrier_wait(&empty[at.stage], at.phase ^ 1);
    if (lane == 0) {
      copy_weights<Codec>(p, shared + at.stage * p.stage_bytes, &full[at.stage], at, policy);
    }
    __syncwarp();
    copy_x<Codec, kStageChunks, kXPitch>(p, shared + at.stage * p.stage_bytes + x_offset, &full[at.stage], at, lane);
  }
}

// Four sums of one lane: [block][warp][tile][lane] of float4.
template <int kTiles>
__device__ float4* partial_slot(const StreamArguments& p, int block, int tile, int warp, int lane) {
  return reinterpret_cast<float4*>(p.partial) + ((static_cast<int64_t>(block) * kStreamWarps + warp) * 2 + tile) * 32 +
         lane;
}

// Hands this block's share of a panel to the block that has the panel's end.
template <int kTiles>
__device__ void give_partial(const StreamArguments& p, int warp, int lane, const float (&sum)[kTiles][4]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    store_relaxed(partial_slot<kTiles>(p, blockIdx.x, tile, warp, lane),
                  make_float4(sum[tile][0], sum[tile][1], sum[tile][2], sum[tile][3]));
  }
}

__device__ __forceinline__ bool arrived(const float4& v) {
  return __float_as_uint(v.x) != kNothing && __float_as_uint(v.y) != kNothing && __float_as_uint(v.z) != kNothing &&
         __float_as_uint(v.w) != kNothing;
}

// Adds the shares of those of `blocks` blocks before this one that hold units from `panel_begin` on, in their order,
// and leaves their slots as they were. Several are asked for at once: each answer takes most of a microsecond.
template <int kTiles>
__device__ void take_partials(const StreamArguments& p, int blocks, int panel_begin, int warp, int lane,
                              float (&sum)[kTiles][4]) {
  constexpr int kAtOnce = 4;
  const uint32_t units = static_cast<uint32_t>(p.panels) * p.chunks;
  const float nothing = __uint_as_float(kNothing);
  const int last = static_cast<int>(blockIdx.x);
  int first = last;
  while (first > 0 && Range(first - 1, blocks, units).end > panel_begin) --first;
  for (int block = first; block < last; block += kAtOnce) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float4 values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (block + i < last) values[i] = load_relaxed(partial_slot<kTiles>(p, block + i, tile, warp, lane));
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (block + i >= last) continue;
        float4* slot = partial_slot<kTiles>(p, block + i, tile, warp, lane);
        while (!arrived(values[i])) values[i] = load_relaxed(slot);
        sum[tile][0] += values[i].x, sum[tile][1] += values[i].y;
        sum[tile][2] += values[i].z, sum[tile][3] += values[i].w;
        store_relaxed(slot, make_float4(nothing, nothing, nothing, nothing));
      }
    }
  }
}

}  // namespace gemma4::cuda
