// out[n, rows] = x[n, cols] w^T for packed w and many rows of x (prefill), in bf16 tensor-core arithmetic, on GPUs
// without wgmma: mma.sync, ldmatrix and cp.async, which compute capability 8.0 has. out is rounded to bf16 or not.
//
// An output tile is 128 rows of w (a row tile) by 128 rows of x (64 where x is short). Four warps have 32 rows of w
// each, and all rows of x. So a weight is unpacked once, into the A operand, and serves every row of x in the tile. x
// is the B operand, in shared memory in rows of 128 bytes whose 16-byte vectors are swizzled. Two CTAs share an SM: one
// multiplies while the other one waits at a barrier or writes its tile. What bounds the speed is the bandwidth of
// shared memory, because every warp reads all of x, and the instructions that unpack: the compiled loop has 3.4 for
// each mma at int4 in groups of 32.
//
// Tiles that do not fill a wave are divided along the columns (output_tiles.cuh). The block that has a tile's beginning
// computes it last, adds the partials of the blocks after it in order, and writes the tile. So the result does not
// depend on timing.
#include <cuda_bf16.h>

#include <algorithm>

#include "backend/cuda/device/activation.cuh"
#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/device/cp_async.cuh"
#include "backend/cuda/device/mma.cuh"
#include "backend/cuda/gemm/kernels.h"
#include "backend/cuda/gemm/layout_codec.cuh"
#include "backend/cuda/gemm/output_tiles.cuh"
#include "backend/cuda/gemm/product_arguments.h"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kMmaWarps = 4, kMmaThreads = kMmaWarps * 32;
constexpr int kWarpTiles = 2;  // weight tiles, of 16 rows, that a warp has; 4 halves reads of x and doubles unpacking
constexpr int kRowWarps = kRowTileTiles / kWarpTiles;  // warps that divide the rows of w
constexpr int kXWarps = kMmaWarps / kRowWarps;         // and the rows of x
constexpr int kMmaCtas = kMmaBlocksPerSm;
constexpr int kMmaStagesMax = 6;
constexpr int kXTileGroup = 16;          // tiles of x that neighbouring blocks go through before the next row tile
constexpr int kXPitch = 128;             // bytes of a row of x in a stage: 64 columns
constexpr int kXPass = kMmaThreads / 8;  // rows of x that the block copies at a time, 16 bytes a thread
constexpr int kStagingPitch = kWarpTiles * 32 + 16;  // bytes; 16: rows start in different banks
constexpr int kStagingBytes = 8 * kStagingPitch;     // of a warp: 8 rows of x
static_assert(kRowWarps * kWarpTiles == kRowTileTiles && kRowWarps * kXWarps == kMmaWarps);

struct MmaArguments {
  const uint8_t *weights, *x;
  void* out;
  float* partials;
  uint32_t* ready;
  int64_t x_stride, out_stride;  // x_stride: bytes
  int n, rows, col_tiles, row_tiles, x_tiles;
  int tiles, whole_tiles;  // output tiles; the first whole_tiles are not divided
  int stages;
  bool paired, geglu, out_f32;
};

template <int kXRows>
constexpr int kSumTiles = kXRows / kXWarps / 8;  // of 8 rows of x that a warp has
template <int kXRows>
using MmaSums = float[kWarpTiles][kSumTiles<kXRows>][4];  // the D fragments of 16 rows of w by 8 rows of x

template <typename Codec>
constexpr int kUnitBytes = kRowTileTiles * Codec::kBytes;  // a row tile's weights for 64 columns
template <typename Codec, int kXRows>
constexpr int kMmaStageBytes = kXRows* kXPitch + kUnitBytes<Codec>;

// Which row tile and which rows of x an output tile has. Neighbouring blocks have the same row tile and up to 16 tiles
// of x, so that a wave of blocks finds both in L2.
struct TilePosition {
  int row_tile, x_row;
  __device__ TilePosition(const MmaArguments& p, int tile, int x_rows) {
    const int first = tile / (kXTileGroup * p.row_tiles) * kXTileGroup, i = tile - first * p.row_tiles;
    const int width = min(kXTileGroup, p.x_tiles - first);
    row_tile = i / width, x_row = (first + i % width) * x_rows;
  }
};

// Copies stage after stage of one output tile: a thread's share.
template <typename Codec, int kXRows>
struct StageLoader {
  const uint8_t *x, *w;
  int64_t pass_bytes;
  int rows_left, offset;
  __device__ StageLoader(const MmaArguments& p, const TilePosition& at, int col) {
    const int row = threadIdx.x / 8, vector = threadIdx.x % 8;
    x = p.x + (at.x_row + row) * p.x_stride + col * kXPitch + vector * 16;
    w = p.weights + (static_cast<int64_t>(at.row_tile) * p.col_tiles + col) * kUnitBytes<Codec> + threadIdx.x * 16;
    pass_bytes = kXPass * p.x_stride;
    rows_left = p.n - at.x_row - row;
    offset = row * kXPitch + (vector ^ row % 8) * 16;
  }
  __device__ __forceinline__ void load(uint8_t* to) {
    constexpr int kVectors = kUnitBytes<Codec> / 16;
#pragma unroll
    for (int i = 0; i < kXRows / kXPass; ++i)
      copy16_async(to + offset + i * kXPass * kXPitch, x + i * pass_bytes, i * kXPass < rows_left);
#pragma unroll
    for (int first = 0; first < kVectors; first += kMmaThreads) {
      if (first + kMmaThreads <= kVectors || first + static_cast<int>(threadIdx.x) < kVectors)
        copy16_async(to + kXRows * kXPitch + (first + threadIdx.x) * 16, w + first * 16, true);
    }
    x += kXPitch, w += kUnitBytes<Codec>;
  }
};

__device__ __forceinline__ void wait_for_stage(int pending) {  // until at most this many copies of stages are in flight
  switch (pending) {
    case 0:
      return copy_wait<0>();
    case 1:
      return copy_wait<1>();
    case 2:
      return copy_wait<2>();
    default:
      return copy_wait<3>();
  }
}

// Adds the products of one stage, 64 columns. tile: the warp's first weight tile. x: the address in shared memory of
// this lane's row for ldmatrix, whose matrices are rows of x 0-7 and columns 0-7, rows 0-7 and columns 8-15, then the
// same of rows 8-15: the B operands of two mma.
template <typename Codec, int kXRows>
__device__ __forceinline__ void multiply_stage(const uint8_t* tile, uint32_t x, uint32_t swizzle, int lane,
                                               MmaSums<kXRows>& sum) {
  constexpr int kPairs = kSumTiles<kXRows> / 2;
  Codec codec[kWarpTiles];
  uint32_t a[2][kWarpTiles][4], b[2][4];  // [step % 2], [pair % 2]
#pragma unroll
  for (int i = 0; i < kWarpTiles; ++i) codec[i].load(tile + i * Codec::kBytes, lane);
  load_matrices(b[0], x + swizzle);
#pragma unroll
  for (int i = 0; i < kWarpTiles; ++i) scaled_fragment(codec[i], 0, a[0][i]);
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int next = step * kPairs + pair + 1;
      if (next < 4 * kPairs)
        load_matrices(b[next % 2], x + (swizzle ^ next / kPairs * 32) + next % kPairs * 16 * kXPitch);
#pragma unroll
      for (int i = 0; i < kWarpTiles; ++i) {
        if (step < 3 && pair == (i + 1) * kPairs / (kWarpTiles + 1))
          scaled_fragment(codec[i], step + 1, a[(step + 1) % 2][i]);
      }
      const uint32_t(&operand)[4] = b[pair % 2];
#pragma unroll
      for (int i = 0; i < kWarpTiles; ++i) {
        mma_bf16(sum[i][2 * pair], a[step % 2][i], operand[0], operand[1]);
        mma_bf16(sum[i][2 * pair + 1], a[step % 2][i], operand[2], operand[3]);
      }
    }
  }
}

// The sums of column ranges [begin, end) of an output tile. Returns when no thread reads the stages any more.
template <typename Codec, int kXRows>
__device__ __forceinline__ void multiply_range(const MmaArguments& p, uint8_t* shared, const TilePosition& at,
                                               int begin, int end, int warp, int lane, MmaSums<kXRows>& sum) {
  constexpr int kStage = kMmaStageBytes<Codec, kXRows>;
  StageLoader<Codec, kXRows> loader(p, at, begin);
  int to_load = end - begin;
  for (int i = 0; i < p.stages - 1; ++i) {
    if (to_load-- > 0) loader.load(shared + i * kStage);
    copy_commit();
  }
  const int row_of_x = warp / kRowWarps * (kXRows / kXWarps) + lane / 16 * 8 + lane % 8;
  const uint32_t x = shared_address(shared) + row_of_x * kXPitch;
  const uint32_t swizzle = (lane / 8 % 2 ^ lane % 8) * 16;
  const uint8_t* tile = shared + kXRows * kXPitch + warp % kRowWarps * kWarpTiles * Codec::kBytes;
  int stage = 0, free_stage = p.stages - 1;
  for (int col = begin; col < end; ++col) {
    wait_for_stage(p.stages - 2);
    __syncthreads();  // the stage is complete for all threads, and none reads the one before
    if (to_load-- > 0) loader.load(shared + free_stage * kStage);
    copy_commit();
    multiply_stage<Codec, kXRows>(tile + stage * kStage, x + stage * kStage, swizzle, lane, sum);
    free_stage = stage;
    if (++stage == p.stages) stage = 0;
  }
  __syncthreads();
}

// The transpose of an 8 x 8 matrix of 16-bit elements, of which each lane has two.
__device__ __forceinline__ uint32_t transposed_matrix(uint32_t elements) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(elements));
  return out;
}

// Writes a warp's sums in bf16, 8 rows of x at a time, through transposed matrices: the rows of w are the columns of
// out. x_row: the warp's first. staging: kStagingBytes of shared memory, the warp's own.
template <int kXRows>
__device__ __forceinline__ void write_mma_tile(const MmaArguments& p, int row_tile, int x_row, uint8_t* staging,
                                               int row_warp, int lane, const MmaSums<kXRows>& sum) {
  const int vectors = p.geglu ? kWarpTiles : 2 * kWarpTiles;  // of 8 columns of out
  uint8_t* to = staging + lane / 4 * kStagingPitch + lane % 4 * 4;
#pragma unroll
  for (int i = 0; i < kSumTiles<kXRows>; ++i, x_row += 8) {
#pragma unroll
    for (int tile = 0; tile < kWarpTiles; ++tile) {
      const float* d = sum[tile][i];
      if (p.geglu) {
        *reinterpret_cast<uint32_t*>(to + tile * 16) =
            transposed_matrix(pack_bf16x2(gelu_tanh(d[0]) * d[2], gelu_tanh(d[1]) * d[3]));
      } else {
        *reinterpret_cast<uint32_t*>(to + tile * 32) = transposed_matrix(pack_bf16x2(d[0], d[1]));
        *reinterpret_cast<uint32_t*>(to + tile * 32 + 16) = transposed_matrix(pack_bf16x2(d[2], d[3]));
      }
    }
    __syncwarp();
    for (int j = lane; j < 8 * vectors; j += 32) {
      const int row_of_x = x_row + j / vectors, vector = j % vectors;
      const int row = vector_row(p, row_tile, row_warp * vectors + vector);
      if (row < 0 || row_of_x >= p.n) continue;
      *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(p.out) + row_of_x * p.out_stride + row) =
          *reinterpret_cast<const uint4*>(staging + j / vectors * kStagingPitch + vector * 16);
    }
    __syncwarp();
  }
}

// Writes a warp's sums in F32, straight from the registers: eight lanes fill a sector of 32 bytes.
template <int kXRows>
__device__ __forceinline__ void write_mma_tile_f32(const MmaArguments& p, int row_tile, int x_row, int row_warp,
                                                   int lane, const MmaSums<kXRows>& sum) {
  const int first = x_row + lane % 4 * 2;  // this lane's rows of x: first, first + 1, and on in steps of 8
#pragma unroll
  for (int half = 0; half < kWarpTiles; ++half) {
#pragma unroll
    for (int low = 0; low < 2; ++low) {
      const int row = vector_row(p, row_tile, (row_warp * kWarpTiles + half) * 2 + low);
      if (row < 0) continue;
      float* out = static_cast<float*>(p.out) + first * p.out_stride + row + lane / 4;
#pragma unroll
      for (int i = 0; i < kSumTiles<kXRows>; ++i, out += 8 * p.out_stride) {
        if (first + i * 8 < p.n) out[0] = sum[half][i][2 * low];
        if (first + i * 8 + 1 < p.n) out[p.out_stride] = sum[half][i][2 * low + 1];
      }
    }
  }
}

// A thread's partial in the workspace of a block: [i][thread] of float4.
__device__ __forceinline__ float4* mma_partial_of(const MmaArguments& p, int block) {
  return reinterpret_cast<float4*>(p.partials) + static_cast<int64_t>(block) * (kRowTileRows * 128 / 4) + threadIdx.x;
}

template <int kXRows>
__device__ __forceinline__ void store_mma_partial(const MmaArguments& p, const MmaSums<kXRows>& sum) {
  float4* to = mma_partial_of(p, blockIdx.x);
#pragma unroll
  for (int i = 0; i < kWarpTiles * kSumTiles<kXRows>; ++i) {
    const float* d = sum[i / kSumTiles<kXRows>][i % kSumTiles<kXRows>];
    to[i * kMmaThreads] = make_float4(d[0], d[1], d[2], d[3]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0)
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p.ready + blockIdx.x), "r"(1) : "memory");
}

// Adds the partials of the blocks after this one, which have the last `missing` column ranges of the output tile.
template <int kXRows>
__device__ __forceinline__ void add_mma_partials(const MmaArguments& p, int missing, MmaSums<kXRows>& sum) {
  for (int block = blockIdx.x + 1; missing > 0; ++block) {
    const int has = split_ranges(p, block);
    if (has == 0) continue;
    missing -= has;
    uint32_t ready = 0;
    while (ready == 0)
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(p.ready + block) : "memory");
    const float4* from = mma_partial_of(p, block);
#pragma unroll
    for (int i = 0; i < kWarpTiles * kSumTiles<kXRows>; ++i) {
      const float4 v = __ldcg(from + i * kMmaThreads);
      float* d = sum[i / kSumTiles<kXRows>][i % kSumTiles<kXRows>];
      d[0] += v.x, d[1] += v.y, d[2] += v.z, d[3] += v.w;
    }
    __syncthreads();  // all threads have seen the flag
    if (threadIdx.x == 0) p.ready[block] = 0;
  }
}

template <typename Codec, int kXRows>
__global__ void __launch_bounds__(kMmaThreads, kMmaCtas) gemm_mma_kernel(const __grid_constant__ MmaArguments p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  grid_release();
  grid_wait();
  for (TileCursor at(p); at.more(); at.next(p)) {
    const TilePosition position(p, at.tile, kXRows);
    MmaSums<kXRows> sum = {};
    multiply_range<Codec, kXRows>(p, shared, position, at.begin, at.end, warp, lane, sum);
    if (at.begin > 0) {
      store_mma_partial<kXRows>(p, sum);
      continue;
    }
    if (at.end < p.col_tiles) add_mma_partials<kXRows>(p, p.col_tiles - at.end, sum);
    const int row_warp = warp % kRowWarps, x_row = position.x_row + warp / kRowWarps * (kXRows / kXWarps);
    if (p.out_f32) {
      write_mma_tile_f32<kXRows>(p, position.row_tile, x_row, row_warp, lane, sum);
    } else {
      uint8_t* staging = shared + warp * kStagingBytes;
      write_mma_tile<kXRows>(p, position.row_tile, x_row, staging, row_warp, lane, sum);
      __syncthreads();  // the staging memory becomes stages again
    }
  }
}

template <typename Codec, int kXRows>
void start_mma(MmaArguments p, const MmaWorkspace& workspace, cudaStream_t stream) {
  constexpr int kStage = kMmaStageBytes<Codec, kXRows>, kReserved = 1024;  // kReserved: what a CTA needs beside its own
  static_assert(kMmaCtas * (2 * kStage + kReserved) <= 100 << 10, "two stages must fit the smallest SM");
  static_assert(kMmaWarps * kStagingBytes <= kStage);
  const int shared = (workspace.shared_max + kReserved) / kMmaCtas - kReserved;  // for one CTA
  p.stages = std::clamp(std::min(shared, kMmaSharedMax) / kStage, 2, kMmaStagesMax);
  p.x_tiles = (p.n + kXRows - 1) / kXRows;
  const int grid = divide_tiles(p, p.row_tiles * p.x_tiles, workspace.sms * kMmaCtas);
  static AllowedOn allowed;
  allow_shared_once(gemm_mma_kernel<Codec, kXRows>, kMmaSharedMax, allowed, cudaSharedmemCarveoutMaxShared);
  launch(stream, dim3(grid), dim3(kMmaThreads), p.stages * kStage, gemm_mma_kernel<Codec, kXRows>, p);
}

}  // namespace

void gemm_mma(const LinearCall& call, const MmaWorkspace& workspace, cudaStream_t stream) {
  CHECK(call.x.dtype == DType::kBF16);
  CHECK(call.out.dtype == DType::kBF16 || (call.out.dtype == DType::kF32 && !call.geglu));
  MmaArguments p = {};
  set_product(p, call);
  p.x = static_cast<const uint8_t*>(call.x.data), p.x_stride = call.x.stride * 2;
  p.partials = workspace.partials, p.ready = workspace.ready;
  with_codec(call.w.layout, [&](auto codec) {
    using Codec = decltype(codec);
    if (p.n <= 64) {
      start_mma<Codec, 64>(p, workspace, stream);
    } else {
      start_mma<Codec, 128>(p, workspace, stream);
    }
  });
}

}  // namespace gemma4::cuda
