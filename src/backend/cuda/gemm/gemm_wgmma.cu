// Prefill: out[n, rows] = x[n, cols] w^T for packed w, in bf16 tensor-core arithmetic (wgmma), rounded to bf16 or not.
//
// A tile is 256 rows of w (two panels, one for each of two computing warpgroups) by 128 rows of x (64 where x is
// short). Weights are the A operand, made in registers from the packed chunks while the products of the step before
// run; x is the B operand, brought by the copy engine with a 128-byte swizzle. The tile is wide in w because w is the
// cheap side: 4.6 bits a weight against 16 bits of x, so shared memory fills with 25 KB for 256 x 128 x 64 products.
//
// Whole waves of tiles go one to a block, in step along the columns, so that blocks find each other's x and w in L2.
// The tiles that are left over are cut along the columns into equal shares (stream-K): a block's share is the end of
// one tile, whole tiles, and the beginning of another. The block that has a tile's beginning does it last, adds the
// shares of the blocks behind it in order, and writes the tile; so the result does not depend on timing.
#include <cuda.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <string>

#include "backend/cuda/device/mma.cuh"
#include "backend/cuda/device/tma.cuh"
#include "backend/cuda/gemm/gemm_wgmma.h"
#include "backend/cuda/gemm/layout_codec.cuh"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kGroups = 2;                     // computing warpgroups
constexpr int kThreads = (kGroups + 1) * 128;  // and one that copies
constexpr int kTileRows = kGroups * kPanelRows;
constexpr int kSharedBytes = 227 << 10;
constexpr int kStageTokens = 32;                   // rows of x that an epilogue stage holds
constexpr int kStagePitch = (kPanelRows + 8) * 2;  // bytes; 8: rows start in different banks
constexpr int kEpilogueBytes = kGroups * kStageTokens * kStagePitch;
constexpr int kMaxStages = 12;

struct Arguments {
  const uint8_t* weights;
  void* out;
  float* partial;
  uint32_t* ready;
  int64_t out_stride;
  int n, rows, chunks, panels;
  int row_tiles, tiles, whole_tiles;  // whole_tiles: the first, done one to a block
  int stages;
  bool paired, geglu, out_f32;
};

template <typename Codec, int kTokens>
constexpr int kStageBytes = kTokens* kChunkCols * 2 + (kGroups * kPanelChunks * Codec::kBytes + 1023) / 1024 * 1024;

// What a block does, piece by piece: columns [begin, end) of a tile, in chunks of 64.
struct Walk {
  int whole_tiles, chunks, step, tile, begin, end, left;
  __device__ explicit Walk(const Arguments& p)
      : whole_tiles(p.whole_tiles), chunks(p.chunks), step(gridDim.x), tile(blockIdx.x), begin(0), end(p.chunks) {
    const uint64_t units = static_cast<uint64_t>(p.tiles - p.whole_tiles) * chunks;
    const uint32_t first = static_cast<uint32_t>(units * blockIdx.x / gridDim.x);
    left = static_cast<int>(units * (blockIdx.x + 1) / gridDim.x) - static_cast<int>(first);
    if (tile >= whole_tiles) share(first);
    share_first = first;
  }
  uint32_t share_first;
  __device__ void share(uint32_t first) {
    tile = whole_tiles + static_cast<int>(first / chunks);
    begin = static_cast<int>(first % chunks);
    end = min(chunks, begin + left);
    step = 0;
  }
  __device__ bool more() const { return step > 0 || left > 0; }
  __device__ void next() {
    if (step > 0) {
      tile += step;
      if (tile >= whole_tiles) share(share_first);
    } else {
      left -= end - begin;
      ++tile, begin = 0, end = min(chunks, left);
    }
  }
};

__device__ __forceinline__ float gelu_tanh(float x) {
  const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (2.0f - 2.0f / (__expf(2.0f * inner) + 1.0f));
}

__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  return as_bits(__floats2bfloat162_rn(low, high));
}

template <typename Codec, int kTokens>
__device__ void copy_tiles(const Arguments& p, const CUtensorMap* x_map, uint8_t* shared, uint64_t* full,
                           uint64_t* empty) {
  constexpr int kStage = kStageBytes<Codec, kTokens>, kUnit = kPanelChunks * Codec::kBytes;
  constexpr uint32_t kXBytes = kTokens * kChunkCols * 2;
  int stage = 0, phase = 1;
  bool waited = false;
  for (Walk at(p); at.more(); at.next()) {
    const int panel = at.tile % p.row_tiles * kGroups, token = at.tile / p.row_tiles * kTokens;
    const int panels = min(kGroups, p.panels - panel);
    for (int col = at.begin; col < at.end; ++col) {
      barrier_wait(&empty[stage], phase);
      uint8_t* to = shared + stage * kStage;
      barrier_expect(&full[stage], kXBytes + panels * kUnit);
      for (int i = 0; i < panels; ++i) {
        bulk_load(to + kXBytes + i * kUnit, p.weights + (static_cast<int64_t>(panel + i) * p.chunks + col) * kUnit,
                  kUnit, &full[stage]);
      }
      if (!waited) grid_wait(), waited = true;
      tensor_load(to, x_map, col * kChunkCols, token, &full[stage]);
      if (++stage == p.stages) stage = 0, phase ^= 1;
    }
  }
}

// Where output `piece` (8 neighbouring packed rows) of a panel goes, or -1.
__device__ __forceinline__ int piece_row(const Arguments& p, int panel, int piece) {
  if (p.geglu) {  // 8 outputs from each 16 packed rows
    const int row = panel * (kPanelRows / 2) + piece * 8;
    return row < p.rows / 2 ? row : -1;
  }
  const int place = panel * kPanelRows + piece * 8;
  if (!p.paired) return place < p.rows ? place : -1;
  const int row = place / 16 * 8;
  return row >= p.rows / 2 ? -1 : place % 16 == 0 ? row : p.rows / 2 + row;
}

// Writes a warpgroup's sums, 32 rows of x at a time, through shared memory: there the rows of w are turned to lie along
// the rows of out.
template <int kTokens>
__device__ __forceinline__ void write_tile(const Arguments& p, int panel, int token, uint8_t* staging, int group,
                                           int warp, int lane, const float (&sum)[2][kTokens / 2]) {
  const int matrix = lane / 8, pieces = p.geglu ? 8 : 16, thread = warp * 32 + lane;
#pragma unroll
  for (int round = 0; round < kTokens / kStageTokens; ++round) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (p.geglu) {  // matrices: 8 outputs x four eights of rows of x
        uint32_t r[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* d = &sum[half][(round * 4 + i) * 4];
          r[i] = bf16_pair(gelu_tanh(d[0]) * d[2], gelu_tanh(d[1]) * d[3]);
        }
        store_matrices_transposed(
            shared_address(staging + (matrix * 8 + lane % 8) * kStagePitch + (half * 4 + warp) * 16), r[0], r[1], r[2],
            r[3]);
      } else {  // matrices: rows of w 0-7 and 8-15 x two eights of rows of x
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const float* d = &sum[half][(round * 4 + i) * 4];
          store_matrices_transposed(shared_address(staging + ((i + matrix / 2) * 8 + lane % 8) * kStagePitch +
                                                   ((half * 4 + warp) * 2 + matrix % 2) * 16),
                                    bf16_pair(d[0], d[1]), bf16_pair(d[2], d[3]), bf16_pair(d[4], d[5]),
                                    bf16_pair(d[6], d[7]));
        }
      }
    }
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
    for (int i = thread; i < kStageTokens * pieces; i += 128) {
      const int row_of_x = token + round * kStageTokens + i / pieces, piece = i % pieces;
      const int row = piece_row(p, panel, piece);
      if (row < 0 || row_of_x >= p.n) continue;
      *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(p.out) + row_of_x * p.out_stride + row) =
          *reinterpret_cast<const uint4*>(staging + i / pieces * kStagePitch + piece * 16);
    }
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
  }
}

// The same in F32, straight from the registers: eight lanes fill a sector of 32 bytes, and nobody waits for the stores.
template <int kTokens>
__device__ __forceinline__ void write_tile_f32(const Arguments& p, int panel, int token, int warp, int lane,
                                               const float (&sum)[2][kTokens / 2]) {
  const int first = token + lane % 4 * 2;  // this lane's rows of x: first, first + 1, and on in steps of 8
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int low = 0; low < 2; ++low) {
      const int row = piece_row(p, panel, (half * 4 + warp) * 2 + low);
      if (row < 0) continue;
      float* out = static_cast<float*>(p.out) + first * p.out_stride + row + lane / 4;
#pragma unroll
      for (int i = 0; i < kTokens / 8; ++i, out += 8 * p.out_stride) {
        if (first + i * 8 < p.n) out[0] = sum[half][i * 4 + 2 * low];
        if (first + i * 8 + 1 < p.n) out[p.out_stride] = sum[half][i * 4 + 2 * low + 1];
      }
    }
  }
}

// A thread's sums in the workspace of a block: [i][thread] of float4.
template <int kTokens>
__device__ __forceinline__ float4* share_of(const Arguments& p, int block) {
  return reinterpret_cast<float4*>(p.partial) + static_cast<int64_t>(block) * (kTileRows * 128 / 4) + threadIdx.x;
}

template <int kTokens>
__device__ __forceinline__ void give_share(const Arguments& p, const float (&sum)[2][kTokens / 2]) {
  float4* to = share_of<kTokens>(p, blockIdx.x);
#pragma unroll
  for (int i = 0; i < kTokens / 4; ++i) {
    const float* d = &sum[i / (kTokens / 8)][i % (kTokens / 8) * 4];
    to[i * kGroups * 128] = make_float4(d[0], d[1], d[2], d[3]);
  }
  __threadfence();
  asm volatile("bar.sync 3, %0;" ::"n"(kGroups * 128) : "memory");
  if (threadIdx.x == 0)
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p.ready + blockIdx.x), "r"(1) : "memory");
}

// Adds the shares of the blocks behind this one until the tile's `missing` chunks are there.
template <int kTokens>
__device__ __forceinline__ void take_shares(const Arguments& p, int missing, float (&sum)[2][kTokens / 2]) {
  const uint64_t units = static_cast<uint64_t>(p.tiles - p.whole_tiles) * p.chunks;
  for (int block = blockIdx.x + 1; missing > 0; ++block) {
    const int has = static_cast<int>(units * (block + 1) / gridDim.x) - static_cast<int>(units * block / gridDim.x);
    if (has == 0) continue;
    missing -= has;
    // No clock here: what it takes in registers makes ptxas put the warpgroup products one after another (C7512).
    uint32_t ready = 0;
    while (ready == 0)
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(p.ready + block) : "memory");
    const float4* from = share_of<kTokens>(p, block);
#pragma unroll
    for (int i = 0; i < kTokens / 4; ++i) {
      const float4 v = __ldcg(from + i * kGroups * 128);
      float* d = &sum[i / (kTokens / 8)][i % (kTokens / 8) * 4];
      d[0] += v.x, d[1] += v.y, d[2] += v.z, d[3] += v.w;
    }
    asm volatile("bar.sync 3, %0;" ::"n"(kGroups * 128) : "memory");  // all have seen the flag
    if (threadIdx.x == 0) p.ready[block] = 0;
  }
}

template <int kTokens>
__device__ __forceinline__ void keep(float (&sum)[2][kTokens / 2]) {  // the compiler may not move these over a wait
#pragma unroll
  for (int i = 0; i < kTokens; ++i) asm volatile("" : "+f"(sum[i / (kTokens / 2)][i % (kTokens / 2)])::"memory");
}

template <typename Codec, int kTokens>
__device__ void compute_tiles(const Arguments& p, uint8_t* shared, uint8_t* staging, uint64_t* full, uint64_t* empty,
                              int group, int warp, int lane) {
  constexpr int kStage = kStageBytes<Codec, kTokens>, kXBytes = kTokens * kChunkCols * 2;
  float sum[2][kTokens / 2];
  uint32_t a[2][2][4];  // [step % 2][half]
  int stage = 0, phase = 0;
  for (Walk at(p); at.more(); at.next()) {
    int previous = -1, add = 0;
    for (int col = at.begin; col < at.end; ++col) {
      barrier_wait(&full[stage], phase);
      const uint8_t* chunk = shared + stage * kStage + kXBytes + (group * kPanelChunks + warp) * Codec::kBytes;
      const uint64_t x = wgmma_tile(shared_address(shared + stage * kStage));
      Codec codec[2];
      codec[0].load(chunk, lane);
      codec[1].load(chunk + 4 * Codec::kBytes, lane);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) scaled_fragment(codec[half], step, a[step % 2][half]);
        wgmma_begin();
#pragma unroll
        for (int half = 0; half < 2; ++half) wgmma_bf16(sum[half], a[step % 2][half], x + 2 * step, add);
        wgmma_commit();
        add = 1;
        wgmma_wait<1>();  // the step before is done: its registers, and after step 0 the stage before, are free
        if (step == 0 && previous >= 0 && lane == 0) barrier_arrive(&empty[previous]);
      }
      previous = stage;
      if (++stage == p.stages) stage = 0, phase ^= 1;
    }
    wgmma_wait<0>();
    keep<kTokens>(sum);
    if (lane == 0) barrier_arrive(&empty[previous]);
    const int panel = at.tile % p.row_tiles * kGroups + group, token = at.tile / p.row_tiles * kTokens;
    if (at.begin > 0) {
      give_share<kTokens>(p, sum);
      continue;
    }
    if (at.end < p.chunks) take_shares<kTokens>(p, p.chunks - at.end, sum);
    if (p.out_f32) {
      write_tile_f32<kTokens>(p, panel, token, warp, lane, sum);
    } else {
      write_tile<kTokens>(p, panel, token, staging, group, warp, lane, sum);
    }
  }
}

template <typename Codec, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    mixed_kernel(const Arguments p, const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  grid_release();
  if (threadIdx.x == 0) {
    tensor_map_prefetch(&x_map);
    for (int i = 0; i < p.stages; ++i) barrier_init(&full[i], 1), barrier_init(&empty[i], kGroups * 4);
    barrier_init_done();
  }
  __syncthreads();
  const int group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  if (group == kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x % 128 == 0) copy_tiles<Codec, kTokens>(p, &x_map, shared, full, empty);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    grid_wait();
    uint8_t* staging = shared + p.stages * kStageBytes<Codec, kTokens> + group * kStageTokens * kStagePitch;
    compute_tiles<Codec, kTokens>(p, shared, staging, full, empty, group, warp, lane);
  }
#endif
}

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode encoder() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    CUDA_CHECK(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess) throw DeviceError("the GPU driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(function);
  }();
  return encode;
}

// x as boxes of `tokens` rows x 64 columns, swizzled.
CUtensorMap map_of(const Tensor& x, int tokens) {
  CUtensorMap map;
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(x.row_size()), static_cast<cuuint64_t>(x.rows())};
  const cuuint64_t stride[1] = {static_cast<cuuint64_t>(std::max(x.stride, x.row_size())) * 2};
  const cuuint32_t box[2] = {kChunkCols, static_cast<cuuint32_t>(tokens)}, step[2] = {1, 1};
  const CUresult result = encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, x.data, size, stride, box, step,
                                    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw DeviceError("cuTensorMapEncodeTiled failed with " + std::to_string(result));
  return map;
}

template <typename Codec, int kTokens>
void start(Arguments p, const Tensor& x, int blocks, cudaStream_t stream) {
  constexpr int kStage = kStageBytes<Codec, kTokens>;
  p.stages = std::min(kMaxStages, (kSharedBytes - kEpilogueBytes - 1024) / kStage);
  p.row_tiles = (p.panels + kGroups - 1) / kGroups;
  p.tiles = p.row_tiles * ((p.n + kTokens - 1) / kTokens);
  p.whole_tiles = p.tiles / blocks * blocks;
  if (p.tiles - p.whole_tiles > blocks * 9 / 10) p.whole_tiles = p.tiles;  // nearly a wave: cutting gains nothing
  const int grid = p.whole_tiles == p.tiles ? std::min(blocks, p.tiles) : blocks;
  const int bytes = p.stages * kStage + kEpilogueBytes;
  static AllowedOn allowed;
  allow_shared_once(mixed_kernel<Codec, kTokens>, kSharedBytes - 1024, allowed);
  launch(stream, dim3(grid), dim3(kThreads), bytes, mixed_kernel<Codec, kTokens>, p, map_of(x, kTokens));
}

}  // namespace

void linear_mixed(Tensor out, Tensor x, const DeviceMatrix& w, bool geglu, const MixedWorkspace& workspace,
                  cudaStream_t stream) {
  CHECK(w.layout != Layout::kBF16 && w.cols % kChunkCols == 0);
  CHECK(out.dtype == DType::kBF16 || (out.dtype == DType::kF32 && !geglu));
  Arguments p = {};
  p.weights = static_cast<const uint8_t*>(w.data);
  p.out = out.data, p.out_stride = out.stride;
  p.partial = workspace.partial, p.ready = workspace.ready;
  p.n = static_cast<int>(x.rows()), p.rows = static_cast<int>(w.rows);
  p.chunks = static_cast<int>(w.cols / kChunkCols);
  p.panels = static_cast<int>((w.rows + kPanelRows - 1) / kPanelRows);
  p.paired = w.paired, p.geglu = geglu, p.out_f32 = out.dtype == DType::kF32;
  with_codec(w.layout, [&](auto codec) {
    using Codec = decltype(codec);
    if (p.n <= 64) {
      start<Codec, 64>(p, x, workspace.blocks, stream);
    } else {
      start<Codec, 128>(p, x, workspace.blocks, stream);
    }
  });
}

}  // namespace gemma4::cuda
