// Decode: out[n, rows] = x[n, cols] w^T for n <= 16, bound by reading w.
//
// The chunks of w lie in the order (panel of 128 rows, 64 columns, 16 rows of the panel); a block takes a contiguous
// range of (panel, column) units, the same number for every block to within one, and streams it through a ring of
// stages in shared memory with bulk copies: one warp copies, eight compute, each 16 rows of the panel. The products run
// on the tensor cores (mma.m16n8k16, x as the B operand: up to 8 rows of x cost what one does), on whole numbers that
// are exact in bf16; scales and minimums are applied to the f32 sums of each group. A panel that several blocks share
// is summed by the block that has its end, in block order, so the result does not depend on timing.
//
// Weights do not depend on earlier kernels, so the ring is filled before grid_wait(). A block takes nearly all shared
// memory: then the next linear layer's block starts on a multiprocessor when this one's ends there, exactly one on
// each, and its 200 KB of weights arrive while the small kernels between them run. With room for two, a launch that
// began while an earlier one ended put two blocks on some multiprocessors and none on others, and took half as long
// again.
#include <algorithm>

#include "backend/cuda/device/mma.cuh"
#include "backend/cuda/gemm/gemv_pipeline.cuh"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {

namespace {

constexpr int kWarps = kStreamWarps;
constexpr int kThreads = (kWarps + 1) * 32;  // one more warp copies
using Arguments = StreamArguments;

template <typename Codec>
constexpr int kStageChunks = Codec::kBytes > 640 ? 2 : 4;  // column chunks in a stage
template <typename Codec>
constexpr int kWeightBytes = kStageChunks<Codec>* kPanelChunks* Codec::kBytes;
template <typename Codec>
constexpr int kXPitch = kStageChunks<Codec>* kChunkCols * 2 + 16;  // 16: rows start in different banks
template <typename Codec>
int stage_bytes(int n) {
  return (kWeightBytes<Codec> + (n > 8 ? 16 : 8) * kXPitch<Codec> + 127) / 128 * 128;
}

// Writes one panel's sums: lane holds rows g, g + 8 of the warp's 16 and columns 2c, 2c + 1 of each 8 rows of x.
template <int kTiles>
__device__ __forceinline__ void write_out(const Arguments& p, int panel, int warp, int lane,
                                          const float (&sum)[kTiles][4]) {
  const int place = panel * kPanelRows + warp * kChunkRows, g = lane / 4, c = lane % 4;
  const int half_rows = p.rows / 2, low = place / 2 + g;  // of a paired matrix: the row of each part
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row_of_x = tile * 8 + 2 * c + e % 2;
      if (row_of_x >= p.n) continue;
      const int64_t base = row_of_x * p.out_stride;
      float value = sum[tile][e];
      int row = p.paired ? (e < 2 ? low : half_rows + low) : place + g + (e < 2 ? 0 : 8);
      bool valid = p.paired ? low < half_rows : row < p.rows;
      if (p.geglu) {
        if (e >= 2) continue;
        value = gelu_tanh(value) * sum[tile][e + 2];
      }
      if (!valid) continue;
      if (p.out_f32) {
        static_cast<float*>(p.out)[base + row] = value;
      } else {
        static_cast<__nv_bfloat16*>(p.out)[base + row] = __float2bfloat16_rn(value);
      }
    }
  }
}

// sum += w x of one chunk of 16 x 64 (this warp's) and 64 columns of x.
template <typename Codec, int kTiles>
__device__ __forceinline__ void multiply_chunk(const uint8_t* chunk, uint32_t x_row, int lane,
                                               float (&sum)[kTiles][4]) {
  constexpr int kPitch = kXPitch<Codec>;
  Codec codec;
  codec.load(chunk, lane);
  uint32_t b[kTiles][2][4];  // for two steps each: b0, b1, b0, b1
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    load_matrices(b[tile][0], x_row + tile * 8 * kPitch);
    load_matrices(b[tile][1], x_row + tile * 8 * kPitch + 64);
  }
  constexpr int kGroups = 4 / Codec::kGroupSteps;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    float part[kTiles][4] = {}, ones[kTiles][4] = {};
#pragma unroll
    for (int i = 0; i < Codec::kGroupSteps; ++i) {
      const int step = group * Codec::kGroupSteps + i;
      uint32_t a[4];
      codec.fragment(step, a);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint32_t b0 = b[tile][step / 2][step % 2 * 2], b1 = b[tile][step / 2][step % 2 * 2 + 1];
        mma_bf16(part[tile], a, b0, b1);
        if constexpr (Codec::kHasMinimum) {  // the sum of x, in every row
          const uint32_t one[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
          mma_bf16(ones[tile], one, b0, b1);
        }
      }
    }
    const float2 scale = codec.scale(group), minimum = codec.minimum(group);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[tile][e] = fmaf(e < 2 ? scale.x : scale.y, part[tile][e], sum[tile][e]);
        if constexpr (Codec::kHasMinimum) {
          sum[tile][e] = fmaf(e < 2 ? -minimum.x : -minimum.y, ones[tile][e], sum[tile][e]);
        }
      }
    }
  }
}

template <typename Codec, int kTiles>
__device__ void compute_range(const Arguments& p, const Range& range, const uint8_t* shared, uint64_t* full,
                              uint64_t* empty, int warp, int lane) {
  // ldmatrix rows: lanes 0-7 give rows 0-7 of columns 0-7, the next eight lanes columns 8-15, and so on to 32
  const int x_offset = kWeightBytes<Codec> + lane % 8 * kXPitch<Codec> + lane / 8 * 16;
  constexpr int kUnit = kPanelChunks * Codec::kBytes;
  float sum[kTiles][4] = {}, shared_sum[kTiles][4] = {};
  int shared_panel = -1;  // a panel that began in an earlier block: summed last, when that block is done
  bool whole = range.begin % p.chunks == 0;
  for (Cursor<kStageChunks<Codec>> at(range, p); at.more(); at.next()) {
    const uint8_t* chunk = shared + at.stage * p.stage_bytes + warp * Codec::kBytes;
    const uint32_t x_row = shared_address(shared + at.stage * p.stage_bytes + x_offset);
    barrier_wait(&full[at.stage], at.phase);
    if (at.length == kStageChunks<Codec>) {
#pragma unroll
      for (int k = 0; k < kStageChunks<Codec>; ++k) {
        multiply_chunk<Codec, kTiles>(chunk + k * kUnit, x_row + k * kChunkCols * 2, lane, sum);
      }
    } else {
#pragma unroll 1
      for (int k = 0; k < at.length; ++k) {
        multiply_chunk<Codec, kTiles>(chunk + k * kUnit, x_row + k * kChunkCols * 2, lane, sum);
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&empty[at.stage]);
    if (!at.ends_panel()) continue;
    if (whole) {
      write_out<kTiles>(p, at.panel, warp, lane, sum);
    } else {
      shared_panel = at.panel;
#pragma unroll
      for (int i = 0; i < kTiles * 4; ++i) shared_sum[i / 4][i % 4] = sum[i / 4][i % 4];
    }
    whole = true;
#pragma unroll
    for (int i = 0; i < kTiles * 4; ++i) sum[i / 4][i % 4] = 0;
  }
  if (range.end % p.chunks != 0 && range.begin < range.end) give_partial<kTiles>(p, warp, lane, sum);
  if (shared_panel >= 0) {
    take_partials<kTiles>(p, gridDim.x, shared_panel * p.chunks, warp, lane, shared_sum);
    write_out<kTiles>(p, shared_panel, warp, lane, shared_sum);
  }
}

// kTiles: eights of rows of x.
template <typename Codec, int kTiles>
__global__ void __launch_bounds__(kThreads, 1) decode_kernel(const Arguments p) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) barrier_init(&full[i], 1), barrier_init(&empty[i], kWarps);
    barrier_init_done();
  }
  __syncthreads();
  const Range range(blockIdx.x, gridDim.x, static_cast<uint32_t>(p.panels) * p.chunks);
  if (warp == kWarps) {
    copy_range<Codec, kStageChunks<Codec>, kXPitch<Codec>>(p, range, shared, kWeightBytes<Codec>, full, empty, lane);
  } else {
    grid_wait();  // before anything is written
    compute_range<Codec, kTiles>(p, range, shared, full, empty, warp, lane);
  }
#endif
}

template <typename Codec, int kTiles>
void start(Arguments p, const DecodeWorkspace& workspace, cudaStream_t stream) {
  const int shared = std::min(kSharedBytes, workspace.shared_most - kSharedStatic);
  p.stage_bytes = stage_bytes<Codec>(p.n);
  p.stages = std::min(kMaxStages, shared / p.stage_bytes);
  static AllowedOn allowed;
  allow_shared_once(decode_kernel<Codec, kTiles>, shared, allowed);
  launch(stream, dim3(stream_blocks(p, workspace)), dim3(kThreads), shared, decode_kernel<Codec, kTiles>, p);
}

}  // namespace

void linear_decode(Tensor out, Tensor x, const DeviceMatrix& w, bool geglu, const DecodeWorkspace& workspace,
                   cudaStream_t stream) {
  const Arguments p = stream_arguments(out, x, w, geglu, workspace);
  with_codec(w.layout, [&](auto codec) {
    using Codec = decltype(codec);
    if (p.n <= 8) {
      start<Codec, 1>(p, workspace, stream);
    } else {
      start<Codec, 2>(p, workspace, stream);
    }
  });
}

}  // namespace gemma4::cuda
