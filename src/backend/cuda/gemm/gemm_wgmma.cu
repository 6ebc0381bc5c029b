// out[n, rows] = x[n, cols] w^T for packed w and many rows of x (prefill), in bf16 tensor-core arithmetic (wgmma). out
// is rounded to bf16 or not.
//
// An output tile is 256 rows of w (two row tiles, one for each of two consumer warpgroups) by 128 rows of x (64 where x
// is short). Weights are the A operand, unpacked into registers while the products of the step before run. x is the B
// operand, loaded by TMA with a 128-byte swizzle. The tile is wide in w because w is the cheap side: 4.6 bits a weight
// against 16 bits of x. So shared memory fills with 25 KB for 256 x 128 x 64 products.
//
// Whole waves of output tiles go one to a block. The blocks walk along the columns at the same pace, so that they find
// each other's x and w in L2. The tiles that are left are divided along the columns into equal ranges (stream-K): a
// block's range is the end of one tile, whole tiles, and the beginning of another. The block that has a tile's
// beginning computes it last, adds the partials of the blocks after it in order, and writes the tile. So the result
// does not depend on timing.
#include <cuda.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <string>

#include "backend/cuda/device/activation.cuh"
#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/device/mma.cuh"
#include "backend/cuda/device/tma.cuh"
#include "backend/cuda/device/wgmma.cuh"
#include "backend/cuda/gemm/kernels.h"
#include "backend/cuda/gemm/layout_codec.cuh"
#include "backend/cuda/gemm/output_tiles.cuh"
#include "backend/cuda/gemm/product_arguments.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kConsumerGroups = 2;                     // consumer warpgroups
constexpr int kThreads = (kConsumerGroups + 1) * 128;  // and the producer's
constexpr int kOutTileRows = kConsumerGroups * kRowTileRows;
constexpr int kSharedBytes = 227 << 10;
constexpr int kEpilogueRows = 32;                       // rows of x that are written at a time
constexpr int kEpiloguePitch = (kRowTileRows + 8) * 2;  // bytes; 8: rows start in different banks
constexpr int kEpilogueBytes = kConsumerGroups * kEpilogueRows * kEpiloguePitch;
constexpr int kMaxStages = 12;

struct GemmArguments {
  const uint8_t* weights;
  void* out;
  float* partials;
  uint32_t* ready;
  int64_t out_stride;
  int n, rows, col_tiles, row_tiles;
  int out_row_tiles;       // output tiles along the rows of w, 256 each
  int tiles, whole_tiles;  // output tiles; the first whole_tiles are not divided
  int stages;
  bool paired, geglu, out_f32;
};

template <typename Codec, int kXRows>
constexpr int kStageBytes = kXRows* kWeightTileCols * 2 +
                            (kConsumerGroups * kRowTileTiles * Codec::kBytes + 1023) / 1024 * 1024;

template <typename Codec, int kXRows>
__device__ void produce_tiles(const GemmArguments& p, const CUtensorMap* x_map, uint8_t* shared, uint64_t* full,
                              uint64_t* empty) {
  constexpr int kStage = kStageBytes<Codec, kXRows>, kUnitBytes = kRowTileTiles * Codec::kBytes;
  constexpr uint32_t kXBytes = kXRows * kWeightTileCols * 2;
  int stage = 0, phase = 1;
  bool waited = false;
  for (TileCursor at(p); at.more(); at.next(p)) {
    const int row_tile = at.tile % p.out_row_tiles * kConsumerGroups, x_row = at.tile / p.out_row_tiles * kXRows;
    const int row_tiles = min(kConsumerGroups, p.row_tiles - row_tile);
    for (int col = at.begin; col < at.end; ++col) {
      barrier_wait(&empty[stage], phase);
      uint8_t* to = shared + stage * kStage;
      barrier_expect(&full[stage], kXBytes + row_tiles * kUnitBytes);
      for (int i = 0; i < row_tiles; ++i) {
        bulk_load(to + kXBytes + i * kUnitBytes,
                  p.weights + (static_cast<int64_t>(row_tile + i) * p.col_tiles + col) * kUnitBytes, kUnitBytes,
                  &full[stage]);
      }
      if (!waited) grid_wait(), waited = true;
      tensor_load(to, x_map, col * kWeightTileCols, x_row, &full[stage]);
      if (++stage == p.stages) stage = 0, phase ^= 1;
    }
  }
}

// Writes a warpgroup's sums in bf16, 32 rows of x at a time, through shared memory, which transposes them: the rows of
// w are the columns of out.
template <int kXRows>
__device__ __forceinline__ void write_tile(const GemmArguments& p, int row_tile, int x_row, uint8_t* staging, int group,
                                           int warp, int lane, const float (&sum)[2][kXRows / 2]) {
  const int matrix = lane / 8, vectors = p.geglu ? 8 : 16, thread = warp * 32 + lane;
#pragma unroll
  for (int round = 0; round < kXRows / kEpilogueRows; ++round) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (p.geglu) {  // matrices: 8 outputs x four times 8 rows of x
        uint32_t r[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* d = &sum[half][(round * 4 + i) * 4];
          r[i] = pack_bf16x2(gelu_tanh(d[0]) * d[2], gelu_tanh(d[1]) * d[3]);
        }
        store_matrices_transposed(
            shared_address(staging + (matrix * 8 + lane % 8) * kEpiloguePitch + (half * 4 + warp) * 16), r[0], r[1],
            r[2], r[3]);
      } else {  // matrices: rows of w 0-7 and 8-15 x two times 8 rows of x
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const float* d = &sum[half][(round * 4 + i) * 4];
          store_matrices_transposed(shared_address(staging + ((i + matrix / 2) * 8 + lane % 8) * kEpiloguePitch +
                                                   ((half * 4 + warp) * 2 + matrix % 2) * 16),
                                    pack_bf16x2(d[0], d[1]), pack_bf16x2(d[2], d[3]), pack_bf16x2(d[4], d[5]),
                                    pack_bf16x2(d[6], d[7]));
        }
      }
    }
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
    for (int i = thread; i < kEpilogueRows * vectors; i += 128) {
      const int row_of_x = x_row + round * kEpilogueRows + i / vectors, vector = i % vectors;
      const int row = vector_row(p, row_tile, vector);
      if (row < 0 || row_of_x >= p.n) continue;
      *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(p.out) + row_of_x * p.out_stride + row) =
          *reinterpret_cast<const uint4*>(staging + i / vectors * kEpiloguePitch + vector * 16);
    }
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
  }
}

// Writes a warpgroup's sums in F32, straight from the registers: eight lanes fill a sector of 32 bytes, and no warp
// waits for the stores.
template <int kXRows>
__device__ __forceinline__ void write_tile_f32(const GemmArguments& p, int row_tile, int x_row, int warp, int lane,
                                               const float (&sum)[2][kXRows / 2]) {
  const int first = x_row + lane % 4 * 2;  // this lane's rows of x: first, first + 1, and on in steps of 8
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int low = 0; low < 2; ++low) {
      const int row = vector_row(p, row_tile, (half * 4 + warp) * 2 + low);
      if (row < 0) continue;
      float* out = static_cast<float*>(p.out) + first * p.out_stride + row + lane / 4;
#pragma unroll
      for (int i = 0; i < kXRows / 8; ++i, out += 8 * p.out_stride) {
        if (first + i * 8 < p.n) out[0] = sum[half][i * 4 + 2 * low];
        if (first + i * 8 + 1 < p.n) out[p.out_stride] = sum[half][i * 4 + 2 * low + 1];
      }
    }
  }
}

// A thread's partial in the workspace of a block: [i][thread] of float4.
template <int kXRows>
__device__ __forceinline__ float4* partial_of(const GemmArguments& p, int block) {
  return reinterpret_cast<float4*>(p.partials) + static_cast<int64_t>(block) * (kOutTileRows * 128 / 4) + threadIdx.x;
}

template <int kXRows>
__device__ __forceinline__ void store_partial(const GemmArguments& p, const float (&sum)[2][kXRows / 2]) {
  float4* to = partial_of<kXRows>(p, blockIdx.x);
#pragma unroll
  for (int i = 0; i < kXRows / 4; ++i) {
    const float* d = &sum[i / (kXRows / 8)][i % (kXRows / 8) * 4];
    to[i * kConsumerGroups * 128] = make_float4(d[0], d[1], d[2], d[3]);
  }
  __threadfence();
  asm volatile("bar.sync 3, %0;" ::"n"(kConsumerGroups * 128) : "memory");
  if (threadIdx.x == 0)
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p.ready + blockIdx.x), "r"(1) : "memory");
}

// Adds the partials of the blocks after this one, which have the last `missing` column ranges of the output tile.
template <int kXRows>
__device__ __forceinline__ void add_partials(const GemmArguments& p, int missing, float (&sum)[2][kXRows / 2]) {
  for (int block = blockIdx.x + 1; missing > 0; ++block) {
    const int has = split_ranges(p, block);
    if (has == 0) continue;
    missing -= has;
    // No timeout here: the registers of a clock make ptxas serialise the wgmma instructions (warning C7512).
    uint32_t ready = 0;
    while (ready == 0)
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(p.ready + block) : "memory");
    const float4* from = partial_of<kXRows>(p, block);
#pragma unroll
    for (int i = 0; i < kXRows / 4; ++i) {
      const float4 v = __ldcg(from + i * kConsumerGroups * 128);
      float* d = &sum[i / (kXRows / 8)][i % (kXRows / 8) * 4];
      d[0] += v.x, d[1] += v.y, d[2] += v.z, d[3] += v.w;
    }
    asm volatile("bar.sync 3, %0;" ::"n"(kConsumerGroups * 128) : "memory");  // all threads have seen the flag
    if (threadIdx.x == 0) p.ready[block] = 0;
  }
}

template <int kXRows>
__device__ __forceinline__ void pin_sums(float (&sum)[2][kXRows / 2]) {  // the compiler may not move uses over a wait
#pragma unroll
  for (int i = 0; i < kXRows; ++i) asm volatile("" : "+f"(sum[i / (kXRows / 2)][i % (kXRows / 2)])::"memory");
}

template <typename Codec, int kXRows>
__device__ void consume_tiles(const GemmArguments& p, uint8_t* shared, uint8_t* staging, uint64_t* full,
                              uint64_t* empty, int group, int warp, int lane) {
  constexpr int kStage = kStageBytes<Codec, kXRows>, kXBytes = kXRows * kWeightTileCols * 2;
  float sum[2][kXRows / 2];
  uint32_t a[2][2][4];  // [step % 2][half]
  int stage = 0, phase = 0;
  for (TileCursor at(p); at.more(); at.next(p)) {
    int previous = -1, add = 0;
    for (int col = at.begin; col < at.end; ++col) {
      barrier_wait(&full[stage], phase);
      const uint8_t* tile = shared + stage * kStage + kXBytes + (group * kRowTileTiles + warp) * Codec::kBytes;
      const uint64_t x = wgmma_tile(shared_address(shared + stage * kStage));
      Codec codec[2];
      codec[0].load(tile, lane);
      codec[1].load(tile + 4 * Codec::kBytes, lane);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) scaled_fragment(codec[half], step, a[step % 2][half]);
        group_fence();
#pragma unroll
        for (int half = 0; half < 2; ++half) wgmma_bf16(sum[half], a[step % 2][half], x + 2 * step, add);
        group_commit();
        add = 1;
        group_wait<1>();  // the step before is complete: its registers are free, and after step 0 the stage before
        if (step == 0 && previous >= 0 && lane == 0) barrier_arrive(&empty[previous]);
      }
      previous = stage;
      if (++stage == p.stages) stage = 0, phase ^= 1;
    }
    group_wait<0>();
    pin_sums<kXRows>(sum);
    if (lane == 0) barrier_arrive(&empty[previous]);
    const int row_tile = at.tile % p.out_row_tiles * kConsumerGroups + group,
              x_row = at.tile / p.out_row_tiles * kXRows;
    if (at.begin > 0) {
      store_partial<kXRows>(p, sum);
      continue;
    }
    if (at.end < p.col_tiles) add_partials<kXRows>(p, p.col_tiles - at.end, sum);
    if (p.out_f32) {
      write_tile_f32<kXRows>(p, row_tile, x_row, warp, lane, sum);
    } else {
      write_tile<kXRows>(p, row_tile, x_row, staging, group, warp, lane, sum);
    }
  }
}

template <typename Codec, int kXRows>
__global__ void __launch_bounds__(kThreads, 1)
    gemm_wgmma_kernel(const GemmArguments p, const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  grid_release();
  if (threadIdx.x == 0) {
    tensor_map_prefetch(&x_map);
    for (int i = 0; i < p.stages; ++i) barrier_init(&full[i], 1), barrier_init(&empty[i], kConsumerGroups * 4);
    barrier_init_done();
  }
  __syncthreads();
  const int group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  if (group == kConsumerGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x % 128 == 0) produce_tiles<Codec, kXRows>(p, &x_map, shared, full, empty);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    grid_wait();
    uint8_t* staging = shared + p.stages * kStageBytes<Codec, kXRows> + group * kEpilogueRows * kEpiloguePitch;
    consume_tiles<Codec, kXRows>(p, shared, staging, full, empty, group, warp, lane);
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

// The TMA descriptor of x: boxes of `x_rows` rows x 64 columns, swizzled.
CUtensorMap tensor_map(const Tensor& x, int x_rows) {
  CUtensorMap map;
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(x.row_size()), static_cast<cuuint64_t>(x.rows())};
  const cuuint64_t stride[1] = {static_cast<cuuint64_t>(std::max(x.stride, x.row_size())) * 2};
  const cuuint32_t box[2] = {kWeightTileCols, static_cast<cuuint32_t>(x_rows)}, step[2] = {1, 1};
  const CUresult result = encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, x.data, size, stride, box, step,
                                    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw DeviceError("cuTensorMapEncodeTiled failed with " + std::to_string(result));
  return map;
}

template <typename Codec, int kXRows>
void start(GemmArguments p, const Tensor& x, int blocks, cudaStream_t stream) {
  constexpr int kStage = kStageBytes<Codec, kXRows>;
  p.stages = std::min(kMaxStages, (kSharedBytes - kEpilogueBytes - 1024) / kStage);
  p.out_row_tiles = (p.row_tiles + kConsumerGroups - 1) / kConsumerGroups;
  const int grid = divide_tiles(p, p.out_row_tiles * ((p.n + kXRows - 1) / kXRows), blocks);
  const int bytes = p.stages * kStage + kEpilogueBytes;
  static AllowedOn allowed;
  allow_shared_once(gemm_wgmma_kernel<Codec, kXRows>, kSharedBytes - 1024, allowed);
  launch(stream, dim3(grid), dim3(kThreads), bytes, gemm_wgmma_kernel<Codec, kXRows>, p, tensor_map(x, kXRows));
}

}  // namespace

void gemm_wgmma(const LinearCall& call, const WgmmaWorkspace& workspace, cudaStream_t stream) {
  CHECK(call.out.dtype == DType::kBF16 || (call.out.dtype == DType::kF32 && !call.geglu));
  GemmArguments p = {};
  set_product(p, call);
  p.partials = workspace.partials, p.ready = workspace.ready;
  with_codec(call.w.layout, [&](auto codec) {
    using Codec = decltype(codec);
    if (p.n <= 64) {
      start<Codec, 64>(p, call.x, workspace.blocks, stream);
    } else {
      start<Codec, 128>(p, call.x, workspace.blocks, stream);
    }
  });
}

}  // namespace gemma4::cuda
