// out[n, rows] = x[n, cols] w^T for n <= 16 (decode), in bf16 tensor-core arithmetic. Bound by reading w.
//
// A block takes a contiguous range of work units (gemv_pipeline.cuh), the same number for every block to within one,
// and streams it through the stages of a ring in shared memory with TMA bulk copies. One warp is the producer, eight
// are consumers, each for 16 rows of the row tile. They use mma.m16n8k16 with x as the B operand, so up to 8 rows of x
// cost what one does. Operands are whole numbers, exact in bf16; scales and minimums are applied to the f32 sum of each
// group. A row tile that several blocks share is summed by the block that computes its end, in block order, so the
// result does not depend on timing.
//
// Weights do not depend on earlier kernels, so the stages are filled before grid_wait(). A block claims nearly all
// shared memory. So the next linear layer's block starts on an SM when this one's ends there, exactly one on each, and
// its first stages of weights arrive while the small kernels between them run. When there was room for two blocks, a
// launch that began while an earlier one ended put two blocks on some SMs and none on others, and took half as long
// again.
#include <algorithm>

#include "backend/cuda/device/mma.cuh"
#include "backend/cuda/gemm/gemv_pipeline.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kThreads = (kConsumerWarps + 1) * 32;  // the consumers and the producer

template <typename Codec>
constexpr int kStageTiles = Codec::kBytes > 640 ? 2 : 4;  // work units
template <typename Codec>
constexpr int kWeightBytes = kStageTiles<Codec>* kRowTileTiles* Codec::kBytes;
template <typename Codec>
constexpr int kXPitch = kStageTiles<Codec>* kWeightTileCols * 2 + 16;  // 16: rows start in different banks
template <typename Codec>
int stage_bytes(int n) {
  return (kWeightBytes<Codec> + (n > 8 ? 16 : 8) * kXPitch<Codec> + 127) / 128 * 128;
}

// Writes the sums of one row tile. The lane holds rows g and g + 8 of the warp's 16, for rows 2c and 2c + 1 of each x
// tile of 8.
template <int kXTiles>
__device__ __forceinline__ void write_row_tile(const GemvArguments& p, int row_tile, int warp, int lane,
                                               const float (&sum)[kXTiles][4]) {
  const int first = row_tile * kRowTileRows + warp * kWeightTileRows, g = lane / 4, c = lane % 4;
  const int half_rows = p.rows / 2, low = first / 2 + g;  // of a paired matrix: the row in each half
#pragma unroll
  for (int x_tile = 0; x_tile < kXTiles; ++x_tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row_of_x = x_tile * 8 + 2 * c + e % 2;
      if (row_of_x >= p.n) continue;
      const int64_t base = row_of_x * p.out_stride;
      float value = sum[x_tile][e];
      int row = p.paired ? (e < 2 ? low : half_rows + low) : first + g + (e < 2 ? 0 : 8);
      bool valid = p.paired ? low < half_rows : row < p.rows;
      if (p.geglu) {
        if (e >= 2) continue;
        value = gelu_tanh(value) * sum[x_tile][e + 2];
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

// sum += w x for one weight tile (this warp's) and 64 columns of x.
template <typename Codec, int kXTiles>
__device__ __forceinline__ void multiply_tile(const uint8_t* tile, uint32_t x_row, int lane, float (&sum)[kXTiles][4]) {
  constexpr int kPitch = kXPitch<Codec>;
  Codec codec;
  codec.load(tile, lane);
  uint32_t b[kXTiles][2][4];  // b0, b1 of one step, then of the next
#pragma unroll
  for (int x_tile = 0; x_tile < kXTiles; ++x_tile) {
    load_matrices(b[x_tile][0], x_row + x_tile * 8 * kPitch);
    load_matrices(b[x_tile][1], x_row + x_tile * 8 * kPitch + 64);
  }
  constexpr int kGroups = 4 / Codec::kGroupSteps;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    float group_sum[kXTiles][4] = {}, ones[kXTiles][4] = {};
#pragma unroll
    for (int i = 0; i < Codec::kGroupSteps; ++i) {
      const int step = group * Codec::kGroupSteps + i;
      uint32_t a[4];
      codec.fragment(step, a);
#pragma unroll
      for (int x_tile = 0; x_tile < kXTiles; ++x_tile) {
        const uint32_t b0 = b[x_tile][step / 2][step % 2 * 2], b1 = b[x_tile][step / 2][step % 2 * 2 + 1];
        mma_bf16(group_sum[x_tile], a, b0, b1);
        if constexpr (Codec::kHasMinimum) {  // the sum of x, in every row of D
          const uint32_t one[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
          mma_bf16(ones[x_tile], one, b0, b1);
        }
      }
    }
    const float2 scale = codec.scale(group), minimum = codec.minimum(group);
#pragma unroll
    for (int x_tile = 0; x_tile < kXTiles; ++x_tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[x_tile][e] = fmaf(e < 2 ? scale.x : scale.y, group_sum[x_tile][e], sum[x_tile][e]);
        if constexpr (Codec::kHasMinimum) {
          sum[x_tile][e] = fmaf(e < 2 ? -minimum.x : -minimum.y, ones[x_tile][e], sum[x_tile][e]);
        }
      }
    }
  }
}

template <typename Codec, int kXTiles>
__device__ void consumer_loop(const GemvArguments& p, const WorkRange& range, const uint8_t* shared, uint64_t* full,
                              uint64_t* empty, int warp, int lane) {
  // Rows for ldmatrix: lanes 0-7 give rows 0-7 of columns 0-7, the next eight lanes those of columns 8-15, and so on.
  const int x_offset = kWeightBytes<Codec> + lane % 8 * kXPitch<Codec> + lane / 8 * 16;
  constexpr int kUnitBytes = kRowTileTiles * Codec::kBytes;
  float sum[kXTiles][4] = {}, split_sum[kXTiles][4] = {};
  int split_row_tile = -1;  // began in an earlier block: reduced last, when that block is done
  bool whole = range.begin % p.col_tiles == 0;
  for (Cursor<kStageTiles<Codec>> at(range, p); at.more(); at.next()) {
    const uint8_t* tile = shared + at.stage * p.stage_bytes + warp * Codec::kBytes;
    const uint32_t x_row = shared_address(shared + at.stage * p.stage_bytes + x_offset);
    barrier_wait(&full[at.stage], at.phase);
    if (at.length == kStageTiles<Codec>) {
#pragma unroll
      for (int k = 0; k < kStageTiles<Codec>; ++k) {
        multiply_tile<Codec, kXTiles>(tile + k * kUnitBytes, x_row + k * kWeightTileCols * 2, lane, sum);
      }
    } else {
#pragma unroll 1
      for (int k = 0; k < at.length; ++k) {
        multiply_tile<Codec, kXTiles>(tile + k * kUnitBytes, x_row + k * kWeightTileCols * 2, lane, sum);
      }
    }
    barrier_arrive(&empty[at.stage]);  // every lane for what it read
    if (!at.ends_row_tile()) continue;
    if (whole) {
      write_row_tile<kXTiles>(p, at.row_tile, warp, lane, sum);
    } else {
      split_row_tile = at.row_tile;
#pragma unroll
      for (int i = 0; i < kXTiles * 4; ++i) split_sum[i / 4][i % 4] = sum[i / 4][i % 4];
    }
    whole = true;
#pragma unroll
    for (int i = 0; i < kXTiles * 4; ++i) sum[i / 4][i % 4] = 0;
  }
  if (range.end % p.col_tiles != 0 && range.begin < range.end) store_partials<kXTiles>(p, warp, lane, sum);
  if (split_row_tile >= 0) {
    reduce_partials<kXTiles>(p, gridDim.x, split_row_tile * p.col_tiles, warp, lane, split_sum);
    write_row_tile<kXTiles>(p, split_row_tile, warp, lane, split_sum);
  }
}

// kXTiles: x tiles of 8 rows.
template <typename Codec, int kXTiles>
__global__ void __launch_bounds__(kThreads + kCopyThreads - 32, 1)
    gemv_bf16_kernel(const GemvArguments p) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {
      barrier_init(&full[i], full_arrivals(p)), barrier_init(&empty[i], kConsumerWarps * 32);
    }
    barrier_init_done();
  }
  __syncthreads();
  const WorkRange range(blockIdx.x, gridDim.x, static_cast<uint32_t>(p.row_tiles) * p.col_tiles);
  if (warp >= kConsumerWarps) {
    producer_loop<Codec, kStageTiles<Codec>, kXPitch<Codec>>(p, range, shared, kWeightBytes<Codec>, full, empty,
                                                            threadIdx.x - kConsumerWarps * 32);
  } else {
    grid_wait();  // before anything is written
    consumer_loop<Codec, kXTiles>(p, range, shared, full, empty, warp, lane);
  }
#endif
}

template <typename Codec, int kXTiles>
void start(GemvArguments p, const GemvWorkspace& workspace, cudaStream_t stream) {
  const int shared = std::min(kSharedBytes, workspace.shared_max - kSharedStatic);
  p.stage_bytes = stage_bytes<Codec>(p.n);
  p.stages = std::min(kMaxStages, shared / p.stage_bytes);
  static AllowedOn allowed;
  allow_shared_once(gemv_bf16_kernel<Codec, kXTiles>, shared, allowed);
  launch(stream, dim3(gemv_blocks(p, workspace)), dim3(block_threads(p, kThreads)), shared,
         gemv_bf16_kernel<Codec, kXTiles>, p);
}

}  // namespace

void gemv_bf16(const LinearCall& call, const GemvWorkspace& workspace, cudaStream_t stream) {
  const GemvArguments p = gemv_arguments(call, workspace);
  with_codec(call.w.layout, [&](auto codec) {
    using Codec = decltype(codec);
    if (p.n <= 8) {
      start<Codec, 1>(p, workspace, stream);
    } else {
      start<Codec, 2>(p, workspace, stream);
    }
  });
}

}  // namespace gemma4::cuda
