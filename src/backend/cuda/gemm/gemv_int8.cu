// out[n, rows] = x[n, cols] w^T for n <= 8 (decode) and 4-bit codes: the pipeline of gemv_bf16.cu with int8 arithmetic.
// gemv_bf16.cu spends 82 instructions on a weight tile, this kernel about half of them.
//
// x becomes fixed-point numbers: each 64 columns of a row share a power of two, and a value is an integer below 2^14.
// (A value more than 2^7 below the largest of its 64 loses bits of its bf16 mantissa, by at most 2^-14 of that
// largest.) An integer is two signed bytes, its limbs: 256 high + low. Both limbs are columns of the B operand of the
// integer tensor cores (mma.m16n8k32), so four rows of x fill its eight columns. The A operand is the codes as they lie
// in memory. Of a word of eight codes, `& 0x0f0f0f0f` gives four columns of row g, and `& 0xf0f0f0f0` gives the same
// columns of row g + 8 times 16; the factor 16 is removed once at the end. So 4 codes cost one operation, and sums are
// exact until a group's scale is applied:
//   w x = scale (256 sum(q high) + sum(q low) - zero sum(x))
//
// With one row of x (kXTiles 0), seven of the eight columns would be idle, and as many lanes in what follows the
// product. So the two limbs of each of four groups (two weight tiles) get columns of their own and the rest of B is
// zero. Four products into one accumulator then leave group c with lanes c, and scales and zero points are applied once
// for four groups.
//
// One warp is the producer and eight are consumers. Converter warps turn the bf16 x of a stage to limbs while the
// stages before it are multiplied.
#include <algorithm>

#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/gemm/gemv_pipeline.cuh"
#include "backend/cuda/gemm/limbs.cuh"
#include "backend/cuda/gemm/select_kernel.h"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kStageTiles = 4;  // work units of a stage
// Converter warps. Two take the stages of one row in turns. Several rows are divided among one warp for each: a stage
// is converted in as long as one row takes.
constexpr int converter_warps(int x_tiles) { return x_tiles == 0 ? 2 : 4 * x_tiles; }
constexpr int threads(int x_tiles) { return (kConsumerWarps + 1 + converter_warps(x_tiles)) * 32; }
constexpr int kXTileRows = 4;  // rows of x in an x tile of eight columns: two limbs each

// Byte offsets in a stage. It holds weights, x scales [row of x][column range] of 16 bytes, limbs
// [2 * row of x + (1 for low)][column range][64], and x [row] in bf16. With one row of x, limbs are
// [column range][lane][16]: a lane's B operands for the two groups of the column range. The x scales of a column range
// are minus the sums of its two groups of 32, and the float that the integer 1 stands for: {-sum, -sum, scale, 0}, with
// one row of x {-sum, scale, -sum, scale}.
template <typename Codec, int kWeightTiles, int kXTiles>
struct Stage {
  static constexpr bool kOneRow = kXTiles == 0;
  static constexpr int kWeightBytes = kWeightTiles * kRowTileTiles * Codec::kBytes;
  static constexpr int kXScales = kWeightBytes;
  static constexpr int kLimbs = kXScales + (kOneRow ? 1 : kXTiles * kXTileRows) * kWeightTiles * 16;
  static constexpr int kLimbPitch = kWeightTiles * kWeightTileCols + 64;  // 64: two columns fill the 32 banks together
  static constexpr int kXPitch = kWeightTiles * kWeightTileCols * 2 + 16;
  static __host__ __device__ int x_offset(int n) {
    return kLimbs + (kOneRow ? kWeightTiles * 512 : 2 * n * kLimbPitch);
  }
  static int bytes(int n) { return (x_offset(n) + n * kXPitch + 127) / 128 * 128; }
  static_assert(kLimbPitch % 128 == 64 && kWeightBytes % 16 == 0);
};

// Zero points of rows g and g + 8; the second times 16, as its products are.
template <int kGroups>
__device__ __forceinline__ int2 zeros(const Int4Codec<kGroups>& codec, int group) {
  const uint32_t z = codec.z >> (8 * group);
  return make_int2(static_cast<int>(z & 0x0f), static_cast<int>(z & 0xf0));
}
__device__ __forceinline__ int2 zeros(const Q40Codec&, int) { return make_int2(8, 128); }

// Converts one row of x of one stage. Eight lanes take a column range of 64. Each lane takes, of one 16 columns,
// 4h .. 4h + 3 and 4h + 8 .. 4h + 11: what lanes c = 2h and 2h + 1 of the A operand hold, in the order of the codes.
template <typename S, int kWeightTiles>
__device__ __forceinline__ void convert_row(uint8_t* stage, int x_offset, int row, int lane) {
  const int step = lane % 8 / 2, h = lane % 2;
#pragma unroll
  for (int pass = 0; pass < kWeightTiles / 4; ++pass) {
    const int tile = pass * 4 + lane / 8;
    const uint8_t* from = stage + x_offset + row * S::kXPitch + (tile * kWeightTileCols + step * 16 + 4 * h) * 2;
    const uint2 near = *reinterpret_cast<const uint2*>(from), far = *reinterpret_cast<const uint2*>(from + 16);
    const uint32_t words[4] = {near.x, far.x, near.y, far.y};
    uint32_t top = 0;  // without their signs, bf16 numbers are ordered as integers are
#pragma unroll
    for (int i = 0; i < 4; ++i) top = __vmaxu2(top, words[i] & 0x7fff7fff);
    top = max(top & 0xffff, top >> 16);
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) top = max(top, __shfl_xor_sync(0xffffffffu, top, mask));
    const uint32_t exponent = max(top >> 7, 14u);  // below 14 the power of two would not be a normal number
    const float power = __uint_as_float((267 - exponent) << 23);  // 2^(13 - (exponent - 127)): all below 2^14
    int value[8], sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = unpack_bf16x2(words[i]);
      value[2 * i] = __float2int_rn(x.x * power), value[2 * i + 1] = __float2int_rn(x.y * power);
      sum += value[2 * i] + value[2 * i + 1];
    }
    // `words` has columns 4h, 4h + 1 | 4h + 8, 4h + 9 | 4h + 2, 4h + 3 | 4h + 10, 4h + 11. A code word has the bytes of
    // columns 2c, 2c + 8, 2c + 1, 2c + 9.
    uint8_t *high, *low;
    if constexpr (S::kOneRow) {  // group j of a pair has columns 2j and 2j + 1, from lanes 8j and 8j + 4
      high = stage + S::kLimbs + tile * 512 + (tile % 2 * 2 + step / 2) * 128 + step * 4;
      low = high + 64;
    } else {
      high = stage + S::kLimbs + 2 * row * S::kLimbPitch + tile * kWeightTileCols + step * 4;
      low = high + S::kLimbPitch;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int* v = value + 4 * i;
      const int at = (2 * h + i) * 16;
      *reinterpret_cast<uint32_t*>(low + at) = low_limbs(v[0], v[2], v[1], v[3]);
      *reinterpret_cast<uint32_t*>(high + at) = high_limbs(v[0] + 128, v[2] + 128, v[1] + 128, v[3] + 128);
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int other = __shfl_xor_sync(0xffffffffu, sum, 4);
    if (lane % 8 == 0) {  // infinity and NaN (exponent 255) make the row NaN
      const float scale = exponent == 255 ? __uint_as_float(0x7fffffff) : __uint_as_float((exponent - 13) << 23);
      *reinterpret_cast<int4*>(stage + S::kXScales + (row * kWeightTiles + tile) * 16) =
          S::kOneRow ? make_int4(-sum, __float_as_int(scale), -other, __float_as_int(scale))
                     : make_int4(-sum, -other, __float_as_int(scale), 0);
    }
  }
}

template <typename S, int kWeightTiles, int kWarps>
__device__ void convert_loop(const GemvArguments& p, const WorkRange& range, uint8_t* shared, uint64_t* full,
                             uint64_t* ready, int converter, int lane) {
  int load_index = 0;
  for (Cursor<kWeightTiles> at(range, p); at.more(); at.next(), ++load_index) {
    if (S::kOneRow && load_index % kWarps != converter) continue;
    uint8_t* stage = shared + at.stage * p.stage_bytes;
    if (S::kOneRow && load_index < p.stages) {  // the bytes that no conversion writes stay zero
#pragma unroll
      for (int tile = 0; tile < kWeightTiles; ++tile) {
        *reinterpret_cast<uint4*>(stage + S::kLimbs + tile * 512 + lane * 16) = make_uint4(0, 0, 0, 0);
      }
      __syncwarp();
    }
    barrier_wait(&full[at.stage], at.phase);
    for (int row = S::kOneRow ? 0 : converter; row < p.n; row += kWarps) {
      convert_row<S, kWeightTiles>(stage, S::x_offset(p.n), row, lane);
    }
    barrier_arrive(&ready[at.stage]);
  }
}

// sum[.][0] += w x for row g of the weight tile; sum[.][2] += 16 w x for row g + 8.
template <typename Codec, typename S, int kXTiles>
__device__ __forceinline__ void multiply_tile(const uint8_t* tile, const uint8_t* const (&limbs)[kXTiles],
                                              const uint8_t* const (&x_scales)[kXTiles], int lane,
                                              float (&sum)[kXTiles][4]) {
  constexpr int kGroups = 4 / Codec::kGroupSteps;
  Codec codec;
  codec.load(tile, lane);
  uint4 b[kXTiles];
  int4 x_scale[kXTiles];
  float group_sum[kXTiles][2] = {};
  int d[kXTiles][4] = {};
#pragma unroll
  for (int x_tile = 0; x_tile < kXTiles; ++x_tile) {
    b[x_tile] = *reinterpret_cast<const uint4*>(limbs[x_tile]);
    x_scale[x_tile] = *reinterpret_cast<const int4*>(x_scales[x_tile]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // groups of 32 columns
    const uint32_t w0 = codec.codes.w[2 * half], w1 = codec.codes.w[2 * half + 1];
    const uint32_t a[4] = {w0 & 0x0f0f0f0fu, w0 & 0xf0f0f0f0u, w1 & 0x0f0f0f0fu, w1 & 0xf0f0f0f0u};
#pragma unroll
    for (int x_tile = 0; x_tile < kXTiles; ++x_tile) {
      mma_u8s8(d[x_tile], a, half ? b[x_tile].z : b[x_tile].x, half ? b[x_tile].w : b[x_tile].y);
    }
    if (kGroups == 1 && half == 0) continue;
    const int group = kGroups == 1 ? 0 : half;
    const int2 zero = zeros(codec, group);
    const float2 scale = codec.scale(group);
#pragma unroll
    for (int x_tile = 0; x_tile < kXTiles; ++x_tile) {
      const int minus_sum = kGroups == 1 ? x_scale[x_tile].x + x_scale[x_tile].y
                            : half       ? x_scale[x_tile].y
                                         : x_scale[x_tile].x;
      const int low = d[x_tile][0] * 256 + d[x_tile][1] + zero.x * minus_sum;
      const int high = d[x_tile][2] * 256 + d[x_tile][3] + zero.y * minus_sum;
      group_sum[x_tile][0] = fmaf(scale.x, static_cast<float>(low), group_sum[x_tile][0]);
      group_sum[x_tile][1] = fmaf(scale.y, static_cast<float>(high), group_sum[x_tile][1]);
#pragma unroll
      for (int e = 0; e < 4; ++e) d[x_tile][e] = 0;
    }
  }
#pragma unroll
  for (int x_tile = 0; x_tile < kXTiles; ++x_tile) {
    const float scale = __int_as_float(x_scale[x_tile].z);
    sum[x_tile][0] = fmaf(scale, group_sum[x_tile][0], sum[x_tile][0]);
    sum[x_tile][2] = fmaf(scale, group_sum[x_tile][1], sum[x_tile][2]);
  }
}

// The same for one row of x and a pair of weight tiles, of which `count` (1 or 2) are real. Lanes c apply the scales of
// group c.
template <typename Codec, int kUnitBytes>
__device__ __forceinline__ void multiply_pair(const uint8_t* tile, const uint8_t* limbs, const uint8_t* x_scales,
                                              int count, int lane, float (&sum)[1][4]) {
  const int g = lane / 4, c = lane % 4;
  int d[4] = {};
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (k == count) break;
    const uint4 w = words4(tile + k * kUnitBytes + lane * 16), b = words4(limbs + k * 512 + lane * 16);
    const uint32_t a0[4] = {w.x & 0x0f0f0f0fu, w.x & 0xf0f0f0f0u, w.y & 0x0f0f0f0fu, w.y & 0xf0f0f0f0u};
    const uint32_t a1[4] = {w.z & 0x0f0f0f0fu, w.z & 0xf0f0f0f0u, w.w & 0x0f0f0f0fu, w.w & 0xf0f0f0f0u};
    mma_u8s8(d, a0, b.x, b.y);
    mma_u8s8(d, a1, b.z, b.w);
  }
  if (c / 2 >= count) return;
  add_group(Codec{}, tile + c / 2 * kUnitBytes, x_scales + c * 8, g, c % 2, d, sum[0]);
}

// Writes the sums of one row tile. Lane 4 g + c holds rows g and g + 8 of the warp's 16, for row c of each x tile.
template <int kXTiles>
__device__ __forceinline__ void write_row_tile(const GemvArguments& p, int row_tile, int warp, int lane,
                                               const float (&sum)[kXTiles][4]) {
  const int first = row_tile * kRowTileRows + warp * kWeightTileRows, g = lane / 4, c = lane % 4;
  const int half_rows = p.rows / 2, pair = first / 2 + g;  // of a paired matrix: the row in each half
#pragma unroll
  for (int x_tile = 0; x_tile < kXTiles; ++x_tile) {
    const int row_of_x = x_tile * kXTileRows + c;
    if (row_of_x >= p.n) continue;
    const int64_t base = row_of_x * p.out_stride;
    const float values[2] = {sum[x_tile][0], sum[x_tile][2] * 0.0625f};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (p.geglu && e > 0) continue;
      const float value = p.geglu ? gelu_tanh(values[0]) * values[1] : values[e];
      const int row = p.paired ? (e ? half_rows : 0) + pair : first + g + 8 * e;
      if (p.paired ? pair >= half_rows : row >= p.rows) continue;
      if (p.out_f32) {
        static_cast<float*>(p.out)[base + row] = value;
      } else {
        static_cast<__nv_bfloat16*>(p.out)[base + row] = __float2bfloat16_rn(value);
      }
    }
  }
}

// Adds the products of a stage to `sum`.
template <typename Codec, int kWeightTiles, int kXTiles>
__device__ __forceinline__ void multiply_stage(const GemvArguments& p, const uint8_t* stage, int length, int warp,
                                               int lane, float (&sum)[kXTiles > 0 ? kXTiles : 1][4]) {
  using S = Stage<Codec, kWeightTiles, kXTiles>;
  constexpr int kUnitBytes = kRowTileTiles * Codec::kBytes;
  const uint8_t* tile = stage + warp * Codec::kBytes;
  if constexpr (S::kOneRow) {
    const auto multiply = [&](int k, int count) {
      multiply_pair<Codec, kUnitBytes>(tile + k * kUnitBytes, stage + S::kLimbs + k * 512, stage + S::kXScales + k * 16,
                                       count, lane, sum);
    };
    if (length == kWeightTiles) {
#pragma unroll
      for (int k = 0; k < kWeightTiles; k += 2) multiply(k, 2);
    } else {
#pragma unroll 1
      for (int k = 0; k < length; k += 2) multiply(k, min(2, length - k));
    }
  } else {
    const auto multiply = [&](int k) {  // lanes past the last row of x read the last row
      const uint8_t *limbs[kXTiles], *x_scales[kXTiles];
#pragma unroll
      for (int x_tile = 0; x_tile < kXTiles; ++x_tile) {
        const int column = min(x_tile * 8 + lane / 4, 2 * p.n - 1), row = min(x_tile * kXTileRows + lane % 4, p.n - 1);
        limbs[x_tile] = stage + S::kLimbs + column * S::kLimbPitch + lane % 4 * 16 + k * kWeightTileCols;
        x_scales[x_tile] = stage + S::kXScales + row * kWeightTiles * 16 + k * 16;
      }
      multiply_tile<Codec, S, kXTiles>(tile + k * kUnitBytes, limbs, x_scales, lane, sum);
    };
    if (length == kWeightTiles) {
#pragma unroll
      for (int k = 0; k < kWeightTiles; ++k) multiply(k);
    } else {
#pragma unroll 1
      for (int k = 0; k < length; ++k) multiply(k);
    }
  }
}

// With one row of x, the four lanes of a row hold sums of different groups. Afterwards each holds the whole sum.
__device__ __forceinline__ void sum_over_lanes(float (&sum)[1][4]) {
#pragma unroll
  for (int e = 0; e < 4; e += 2) {
    sum[0][e] += __shfl_xor_sync(0xffffffffu, sum[0][e], 1);
    sum[0][e] += __shfl_xor_sync(0xffffffffu, sum[0][e], 2);
  }
}

template <typename Codec, int kWeightTiles, int kXTiles>
__device__ void consumer_loop(const GemvArguments& p, const WorkRange& range, const uint8_t* shared, uint64_t* full,
                              uint64_t* ready, uint64_t* empty, int warp, int lane) {
  constexpr int kSums = kXTiles > 0 ? kXTiles : 1;
  float sum[kSums][4] = {}, split_sum[kSums][4] = {};
  int split_row_tile = -1;  // began in an earlier block: reduced last, when that block is done
  bool whole = range.begin % p.col_tiles == 0;
  for (Cursor<kWeightTiles> at(range, p); at.more(); at.next()) {
    barrier_wait(&full[at.stage], at.phase);
    barrier_wait(&ready[at.stage], at.phase);
    multiply_stage<Codec, kWeightTiles, kXTiles>(p, shared + at.stage * p.stage_bytes, at.length, warp, lane, sum);
    barrier_arrive(&empty[at.stage]);
    if (!at.ends_row_tile()) continue;
    if constexpr (kXTiles == 0) sum_over_lanes(sum);
    if (whole) {
      write_row_tile<kSums>(p, at.row_tile, warp, lane, sum);
    } else {
      split_row_tile = at.row_tile;
#pragma unroll
      for (int i = 0; i < kSums * 4; ++i) split_sum[i / 4][i % 4] = sum[i / 4][i % 4];
    }
    whole = true;
#pragma unroll
    for (int i = 0; i < kSums * 4; ++i) sum[i / 4][i % 4] = 0;
  }
  if (range.end % p.col_tiles != 0 && range.begin < range.end) {
    if constexpr (kXTiles == 0) sum_over_lanes(sum);
    store_partials<kSums>(p, warp, lane, sum);
  }
  if (split_row_tile >= 0) {
    reduce_partials<kSums>(p, gridDim.x, split_row_tile * p.col_tiles, warp, lane, split_sum);
    write_row_tile<kSums>(p, split_row_tile, warp, lane, split_sum);
  }
}

template <typename Codec, int kWeightTiles, int kXTiles>
__global__ void __launch_bounds__(threads(kXTiles) + kCopyThreads - 32, 1) gemv_int8_kernel(const GemvArguments p) {
#if __CUDA_ARCH__ >= 800
  using S = Stage<Codec, kWeightTiles, kXTiles>;
  constexpr int kConverters = converter_warps(kXTiles);
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[kMaxStages], ready[kMaxStages], empty[kMaxStages];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {  // each lane arrives for what it wrote or read
      barrier_init(&full[i], full_arrivals(p)), barrier_init(&ready[i], (S::kOneRow ? 1 : kConverters) * 32);
      barrier_init(&empty[i], kConsumerWarps * 32);
    }
    barrier_init_done();
  }
  __syncthreads();
  const WorkRange range(blockIdx.x, gridDim.x, static_cast<uint32_t>(p.row_tiles) * p.col_tiles);
  constexpr int kProducers = kConsumerWarps + kConverters;  // the first producer warp
  if (warp >= kProducers) {
    producer_loop<Codec, kWeightTiles, S::kXPitch>(p, range, shared, S::x_offset(p.n), full, empty,
                                                   threadIdx.x - kProducers * 32);
  } else if (warp >= kConsumerWarps) {
    convert_loop<S, kWeightTiles, kConverters>(p, range, shared, full, ready, warp - kConsumerWarps, lane);
  } else {
    grid_wait();  // before anything is written
    consumer_loop<Codec, kWeightTiles, kXTiles>(p, range, shared, full, ready, empty, warp, lane);
  }
#endif
}

template <typename Codec, int kXTiles>
void start(GemvArguments p, const GemvWorkspace& workspace, cudaStream_t stream) {
  const int shared = std::min(kSharedBytes, workspace.shared_max - kSharedStatic);
  p.stage_bytes = Stage<Codec, kStageTiles, kXTiles>::bytes(p.n);
  p.stages = std::min(kMaxStages, shared / p.stage_bytes);
  static AllowedOn allowed;
  const auto kernel = gemv_int8_kernel<Codec, kStageTiles, kXTiles>;
  allow_shared_once(kernel, shared, allowed);
  launch(stream, dim3(gemv_blocks(p, workspace)), dim3(block_threads(p, threads(kXTiles))), shared, kernel, p);
}

}  // namespace

void gemv_int8(const LinearCall& call, const GemvWorkspace& workspace, cudaStream_t stream) {
  CHECK(gemv_int8_fits(call.w.layout, call.x.rows(), workspace.shared_max));
  const GemvArguments p = gemv_arguments(call, workspace);
  const auto with = [&](auto codec) {
    using Codec = decltype(codec);
    if (p.n == 1) return start<Codec, 0>(p, workspace, stream);
    if (p.n <= kXTileRows) return start<Codec, 1>(p, workspace, stream);
    start<Codec, 2>(p, workspace, stream);
  };
  if (call.w.layout == Layout::kInt4G32) return with(Int4Codec<2>{});
  if (call.w.layout == Layout::kInt4G64) return with(Int4Codec<1>{});
  with(Q40Codec{});
}

}  // namespace gemma4::cuda
