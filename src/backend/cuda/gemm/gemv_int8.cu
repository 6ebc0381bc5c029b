// Decode, n <= 8: the ring of linear_decode.cu with other arithmetic. linear_decode.cu spends 82
// instructions on a chunk of 16 x 64 weights; this one about half of them.
//
// x becomes fixed-point numbers: each 64 columns of a row share a power of two, and a value is an integer below 2^14
// (what is more than 2^7 below the largest of its 64 loses bits of its bf16 mantissa, by at most 2^-14 of that
// largest). An integer is two signed bytes, 256 high + low, and both are columns of the integer tensor cores' B operand
// (mma.m16n8k32): four rows of x fill its eight columns. The A operand is the codes as they lie in memory: of a word of
// eight codes,
// `& 0x0f0f0f0f` gives four columns of row g, `& 0xf0f0f0f0` the same columns of row g + 8 times 16, and the 16 is
// taken off once at the end. So 4 codes cost one operation, and sums are exact until a group's scale meets them:
//   w x = scale (256 sum(q high) + sum(q low) - zero sum(x))
//
// For one row of x (kTiles 0) seven of a tile's eight columns would be idle, and as many lanes after the product. There
// the two digits of each of four groups (two chunks) stand in columns of their own, the rest of B is zero, and four
// products into one accumulator leave group c with lanes c: what follows a product is done once for four groups.
//
// One warp copies, eight compute, two turn the bf16 x of a stage to fixed point while the stages before are computed.
#include <algorithm>

#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/device/limbs.cuh"
#include "backend/cuda/device/reduce.cuh"
#include "backend/cuda/gemm/gemv_int8.h"
#include "backend/cuda/gemm/gemv_pipeline.cuh"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kStageChunks = 4;  // column chunks of a stage
constexpr int kConverters = 2;   // warps; stages in turn
constexpr int kThreads = (kStreamWarps + 1 + kConverters) * 32;
constexpr int kTileRows = 4;  // rows of x in a tile: two of eight columns each

// Where things lie in a stage: weights, facts [row of x][chunk], digits [2 row of x + low][chunk][64], x [row] in bf16.
// Of one row: digits [chunk][lane][16], a lane's B operands for the chunk's two groups.
template <typename Codec, int kChunks, int kTiles>
struct Stage {
  static constexpr bool kOneRow = kTiles == 0;
  static constexpr int kWeights = kChunks * kPanelChunks * Codec::kBytes;
  static constexpr int kFacts = kWeights;
  static constexpr int kDigits = kFacts + (kOneRow ? 1 : kTiles * kTileRows) * kChunks * 16;
  static constexpr int kDigitPitch = kChunks * kChunkCols + 64;  // 64: two columns fill the 32 banks together
  static constexpr int kXPitch = kChunks * kChunkCols * 2 + 16;
  static __host__ __device__ int x_offset(int n) { return kDigits + (kOneRow ? kChunks * 512 : 2 * n * kDigitPitch); }
  static int bytes(int n) { return (x_offset(n) + n * kXPitch + 127) / 128 * 128; }
  static_assert(kDigitPitch % 128 == 64 && kWeights % 16 == 0);
};

// What a chunk of x is besides its digits: minus the sums of its two groups of 32, and what an integer stands for.
struct Facts {
  int minus_sum[2];
  float unit;
  int unused;
};

// Zero points of rows g and g + 8, the second times 16 as its products are.
template <int kGroups>
__device__ __forceinline__ int2 zeros(const Int4Codec<kGroups>& codec, int group) {
  const uint32_t z = codec.z >> (8 * group);
  return make_int2(static_cast<int>(z & 0x0f), static_cast<int>(z & 0xf0));
}
__device__ __forceinline__ int2 zeros(const Q40Codec&, int) { return make_int2(8, 128); }

// One row of x of one stage to digits and facts. Eight lanes take a chunk, each of them, of one 16 columns, 4h .. 4h +
// 3 and 4h + 8 .. 4h + 11: what lanes c = 2h and 2h + 1 of the A operand hold, in the order of the codes in a word.
template <typename S, int kChunks>
__device__ __forceinline__ void convert_row(uint8_t* stage, int x_offset, int row, int lane) {
  const int step = lane % 8 / 2, h = lane % 2;
#pragma unroll
  for (int pass = 0; pass < kChunks / 4; ++pass) {
    const int chunk = pass * 4 + lane / 8;
    const uint8_t* from = stage + x_offset + row * S::kXPitch + (chunk * kChunkCols + step * 16 + 4 * h) * 2;
    const uint2 near = *reinterpret_cast<const uint2*>(from), far = *reinterpret_cast<const uint2*>(from + 16);
    const uint32_t words[4] = {near.x, far.x, near.y, far.y};
    uint32_t top = 0;  // bf16 without a sign grow as whole numbers do
#pragma unroll
    for (int i = 0; i < 4; ++i) top = __vmaxu2(top, words[i] & 0x7fff7fff);
    top = max(top & 0xffff, top >> 16);
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) top = max(top, __shfl_xor_sync(0xffffffffu, top, mask));
    const uint32_t exponent = max(top >> 7, 14u);  // 14: below it the power of two would not be a normal number
    const float power = __uint_as_float((267 - exponent) << 23);  // 2^(13 - (exponent - 127)): the largest below 2^14
    int value[8], sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = bf16x2_to_float2(words[i]);
      value[2 * i] = __float2int_rn(x.x * power), value[2 * i + 1] = __float2int_rn(x.y * power);
      sum += value[2 * i] + value[2 * i + 1];
    }
    // words: columns 4h, 4h + 1 | + 8, + 9 | 4h + 2, 4h + 3 | + 10, + 11; bytes of a code word: 2c, 2c + 8, 2c + 1, 2c
    // + 9
    uint8_t *high, *low;
    if constexpr (S::kOneRow) {  // columns 2j and 2j + 1 of group j of the pair of chunks: lanes 8j and 8j + 4
      high = stage + S::kDigits + chunk * 512 + (chunk % 2 * 2 + step / 2) * 128 + step * 4;
      low = high + 64;
    } else {
      high = stage + S::kDigits + 2 * row * S::kDigitPitch + chunk * kChunkCols + step * 4;
      low = high + S::kDigitPitch;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int* v = value + 4 * i;
      const int at = (2 * h + i) * 16;
      *reinterpret_cast<uint32_t*>(low + at) = low_bytes(v[0], v[2], v[1], v[3]);
      *reinterpret_cast<uint32_t*>(high + at) = next_bytes(v[0] + 128, v[2] + 128, v[1] + 128, v[3] + 128);
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int other = __shfl_xor_sync(0xffffffffu, sum, 4);
    if (lane % 8 == 0) {  // infinity and NaN (exponent 255) make the row NaN
      const float unit = exponent == 255 ? __uint_as_float(0x7fffffff) : __uint_as_float((exponent - 13) << 23);
      *reinterpret_cast<int4*>(stage + S::kFacts + (row * kChunks + chunk) * 16) =
          S::kOneRow ? make_int4(-sum, __float_as_int(unit), -other, __float_as_int(unit))
                     : make_int4(-sum, -other, __float_as_int(unit), 0);
    }
  }
}

template <typename S, int kChunks>
__device__ void convert_range(const StreamArguments& p, const Range& range, uint8_t* shared, uint64_t* full,
                              uint64_t* ready, int converter, int lane) {
  int turn = 0;
  for (Cursor<kChunks> at(range, p); at.more(); at.next(), ++turn) {
    if (turn % kConverters != converter) continue;
    uint8_t* stage = shared + at.stage * p.stage_bytes;
    if (S::kOneRow && turn < p.stages) {  // what no conversion writes is zero
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        *reinterpret_cast<uint4*>(stage + S::kDigits + chunk * 512 + lane * 16) = make_uint4(0, 0, 0, 0);
      }
      __syncwarp();
    }
    barrier_wait(&full[at.stage], at.phase);
    for (int row = 0; row < p.n; ++row) convert_row<S, kChunks>(stage, S::x_offset(p.n), row, lane);
    barrier_arrive(&ready[at.stage]);
  }
}

// sum[.][0] += w x for row g of the chunk, sum[.][2] for row g + 8, times 16.
template <typename Codec, typename S, int kTiles>
__device__ __forceinline__ void multiply_chunk(const uint8_t* chunk, const uint8_t* const (&digits)[kTiles],
                                               const uint8_t* const (&facts)[kTiles], int lane,
                                               float (&sum)[kTiles][4]) {
  constexpr int kGroups = 4 / Codec::kGroupSteps;
  Codec codec;
  codec.load(chunk, lane);
  uint4 b[kTiles];
  int4 fact[kTiles];
  float part[kTiles][2] = {};
  int d[kTiles][4] = {};
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    b[tile] = *reinterpret_cast<const uint4*>(digits[tile]);
    fact[tile] = *reinterpret_cast<const int4*>(facts[tile]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // 32 columns each
    const uint32_t w0 = codec.codes.w[2 * half], w1 = codec.codes.w[2 * half + 1];
    const uint32_t a[4] = {w0 & 0x0f0f0f0fu, w0 & 0xf0f0f0f0u, w1 & 0x0f0f0f0fu, w1 & 0xf0f0f0f0u};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      mma_bytes(d[tile], a, half ? b[tile].z : b[tile].x, half ? b[tile].w : b[tile].y);
    }
    if (kGroups == 1 && half == 0) continue;
    const int group = kGroups == 1 ? 0 : half;
    const int2 zero = zeros(codec, group);
    const float2 scale = codec.scale(group);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int minus_sum = kGroups == 1 ? fact[tile].x + fact[tile].y : half ? fact[tile].y : fact[tile].x;
      const int low = d[tile][0] * 256 + d[tile][1] + zero.x * minus_sum;
      const int high = d[tile][2] * 256 + d[tile][3] + zero.y * minus_sum;
      part[tile][0] = fmaf(scale.x, static_cast<float>(low), part[tile][0]);
      part[tile][1] = fmaf(scale.y, static_cast<float>(high), part[tile][1]);
#pragma unroll
      for (int e = 0; e < 4; ++e) d[tile][e] = 0;
    }
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const float unit = __int_as_float(fact[tile].z);
    sum[tile][0] = fmaf(unit, part[tile][0], sum[tile][0]);
    sum[tile][2] = fmaf(unit, part[tile][1], sum[tile][2]);
  }
}

// One row of x: `count` (1 or 2) chunks of the even place `chunk`; lanes c take what follows the products of group c.
template <typename Codec, int kUnit>
__device__ __forceinline__ void multiply_pair(const uint8_t* chunk, const uint8_t* digits, const uint8_t* facts,
                                              int count, int lane, float (&sum)[1][4]) {
  const int g = lane / 4, c = lane % 4;
  int d[4] = {};
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (k == count) break;
    const uint4 w = words4(chunk + k * kUnit + lane * 16), b = words4(digits + k * 512 + lane * 16);
    const uint32_t a0[4] = {w.x & 0x0f0f0f0fu, w.x & 0xf0f0f0f0u, w.y & 0x0f0f0f0fu, w.y & 0xf0f0f0f0u};
    const uint32_t a1[4] = {w.z & 0x0f0f0f0fu, w.z & 0xf0f0f0f0u, w.w & 0x0f0f0f0fu, w.w & 0xf0f0f0f0u};
    mma_bytes(d, a0, b.x, b.y);
    mma_bytes(d, a1, b.z, b.w);
  }
  if (c / 2 >= count) return;
  add_group(Codec{}, chunk + c / 2 * kUnit, facts + c * 8, g, c % 2, d, sum[0]);
}

// Writes one panel's sums: lane 4 g + c holds rows g and g + 8 of the warp's 16, for row c of each four of x.
template <int kTiles>
__device__ __forceinline__ void write_rows(const StreamArguments& p, int panel, int warp, int lane,
                                           const float (&sum)[kTiles][4]) {
  const int place = panel * kPanelRows + warp * kChunkRows, g = lane / 4, c = lane % 4;
  const int half_rows = p.rows / 2, pair = place / 2 + g;  // of a paired matrix: the row of each part
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int row_of_x = tile * kTileRows + c;
    if (row_of_x >= p.n) continue;
    const int64_t base = row_of_x * p.out_stride;
    const float values[2] = {sum[tile][0], sum[tile][2] * 0.0625f};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (p.geglu && e > 0) continue;
      const float value = p.geglu ? gelu_tanh(values[0]) * values[1] : values[e];
      const int row = p.paired ? (e ? half_rows : 0) + pair : place + g + 8 * e;
      if (p.paired ? pair >= half_rows : row >= p.rows) continue;
      if (p.out_f32) {
        static_cast<float*>(p.out)[base + row] = value;
      } else {
        static_cast<__nv_bfloat16*>(p.out)[base + row] = __float2bfloat16_rn(value);
      }
    }
  }
}

// Adds the pieces of a stage to `sum`.
template <typename Codec, int kChunks, int kTiles>
__device__ __forceinline__ void multiply_stage(const StreamArguments& p, const uint8_t* stage, int length, int warp,
                                               int lane, float (&sum)[kTiles > 0 ? kTiles : 1][4]) {
  using S = Stage<Codec, kChunks, kTiles>;
  constexpr int kUnit = kPanelChunks * Codec::kBytes;
  const uint8_t* chunk = stage + warp * Codec::kBytes;
  if constexpr (S::kOneRow) {
    const auto multiply = [&](int k, int count) {
      multiply_pair<Codec, kUnit>(chunk + k * kUnit, stage + S::kDigits + k * 512, stage + S::kFacts + k * 16, count,
                                  lane, sum);
    };
    if (length == kChunks) {
#pragma unroll
      for (int k = 0; k < kChunks; k += 2) multiply(k, 2);
    } else {
#pragma unroll 1
      for (int k = 0; k < length; k += 2) multiply(k, min(2, length - k));
    }
  } else {
    const auto multiply = [&](int k) {  // lanes past the last row of x take what is there
      const uint8_t *digits[kTiles], *facts[kTiles];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int column = min(tile * 8 + lane / 4, 2 * p.n - 1), row = min(tile * kTileRows + lane % 4, p.n - 1);
        digits[tile] = stage + S::kDigits + column * S::kDigitPitch + lane % 4 * 16 + k * kChunkCols;
        facts[tile] = stage + S::kFacts + row * kChunks * 16 + k * 16;
      }
      multiply_chunk<Codec, S, kTiles>(chunk + k * kUnit, digits, facts, lane, sum);
    };
    if (length == kChunks) {
#pragma unroll
      for (int k = 0; k < kChunks; ++k) multiply(k);
    } else {
#pragma unroll 1
      for (int k = 0; k < length; ++k) multiply(k);
    }
  }
}

// One row of x: the lanes of a row hold sums of different groups; afterwards each has the whole.
__device__ __forceinline__ void join_lanes(float (&sum)[1][4]) {
#pragma unroll
  for (int e = 0; e < 4; e += 2) {
    sum[0][e] += __shfl_xor_sync(0xffffffffu, sum[0][e], 1);
    sum[0][e] += __shfl_xor_sync(0xffffffffu, sum[0][e], 2);
  }
}

template <typename Codec, int kChunks, int kTiles>
__device__ void compute_range(const StreamArguments& p, const Range& range, const uint8_t* shared, uint64_t* full,
                              uint64_t* ready, uint64_t* empty, int warp, int lane) {
  constexpr int kSums = kTiles > 0 ? kTiles : 1;
  float sum[kSums][4] = {}, shared_sum[kSums][4] = {};
  int shared_panel = -1;  // a panel that began in an earlier block: summed last, when that block is done
  bool whole = range.begin % p.chunks == 0;
  for (Cursor<kChunks> at(range, p); at.more(); at.next()) {
    barrier_wait(&full[at.stage], at.phase);
    barrier_wait(&ready[at.stage], at.phase);
    multiply_stage<Codec, kChunks, kTiles>(p, shared + at.stage * p.stage_bytes, at.length, warp, lane, sum);
    barrier_arrive(&empty[at.stage]);
    if (!at.ends_panel()) continue;
    if constexpr (kTiles == 0) join_lanes(sum);
    if (whole) {
      write_rows<kSums>(p, at.panel, warp, lane, sum);
    } else {
      shared_panel = at.panel;
#pragma unroll
      for (int i = 0; i < kSums * 4; ++i) shared_sum[i / 4][i % 4] = sum[i / 4][i % 4];
    }
    whole = true;
#pragma unroll
    for (int i = 0; i < kSums * 4; ++i) sum[i / 4][i % 4] = 0;
  }
  if (range.end % p.chunks != 0 && range.begin < range.end) {
    if constexpr (kTiles == 0) join_lanes(sum);
    give_partial<kSums>(p, warp, lane, sum);
  }
  if (shared_panel >= 0) {
    take_partials<kSums>(p, gridDim.x, shared_panel * p.chunks, warp, lane, shared_sum);
    write_rows<kSums>(p, shared_panel, warp, lane, shared_sum);
  }
}

template <typename Codec, int kChunks, int kTiles>
__global__ void __launch_bounds__(kThreads, 1) fixed_kernel(const StreamArguments p) {
#if __CUDA_ARCH__ >= 900
  using S = Stage<Codec, kChunks, kTiles>;
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[kMaxStages], ready[kMaxStages], empty[kMaxStages];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {  // each lane signs for what it wrote and read
      barrier_init(&full[i], 1), barrier_init(&ready[i], 32), barrier_init(&empty[i], kStreamWarps * 32);
    }
    barrier_init_done();
  }
  __syncthreads();
  const Range range(blockIdx.x, gridDim.x, static_cast<uint32_t>(p.panels) * p.chunks);
  if (warp == kStreamWarps) {
    copy_range<Codec, kChunks, S::kXPitch>(p, range, shared, S::x_offset(p.n), full, empty, lane);
  } else if (warp > kStreamWarps) {
    convert_range<S, kChunks>(p, range, shared, full, ready, warp - kStreamWarps - 1, lane);
  } else {
    grid_wait();  // before anything is written
    compute_range<Codec, kChunks, kTiles>(p, range, shared, full, ready, empty, warp, lane);
  }
#endif
}

template <typename Codec, int kTiles>
void start(StreamArguments p, const DecodeWorkspace& workspace, cudaStream_t stream) {
  const int shared = std::min(kSharedBytes, workspace.shared_most - kSharedStatic);
  p.stage_bytes = Stage<Codec, kStageChunks, kTiles>::bytes(p.n);
  p.stages = std::min(kMaxStages, shared / p.stage_bytes);
  static AllowedOn allowed;
  const auto kernel = fixed_kernel<Codec, kStageChunks, kTiles>;
  allow_shared_once(kernel, shared, allowed);
  launch(stream, dim3(stream_blocks(p, workspace)), dim3(kThreads), shared, kernel, p);
}

}  // namespace

bool linear_fixed_fits(const DeviceMatrix& w, int64_t n, const DecodeWorkspace& workspace) {
  const bool known = w.layout == Layout::kInt4G32 || w.layout == Layout::kInt4G64 || w.layout == Layout::kQ4_0;
  return known && n <= kFixedRows && workspace.shared_most >= (227 << 10);
}

void linear_fixed(Tensor out, Tensor x, const DeviceMatrix& w, bool geglu, const DecodeWorkspace& workspace,
                  cudaStream_t stream) {
  CHECK(linear_fixed_fits(w, x.rows(), workspace));
  const StreamArguments p = stream_arguments(out, x, w, geglu, workspace);
  const auto with = [&](auto codec) {
    using Codec = decltype(codec);
    if (p.n == 1) return start<Codec, 0>(p, workspace, stream);
    if (p.n <= kTileRows) return start<Codec, 1>(p, workspace, stream);
    start<Codec, 2>(p, workspace, stream);
  };
  if (w.layout == Layout::kInt4G32) return with(Int4Codec<2>{});
  if (w.layout == Layout::kInt4G64) return with(Int4Codec<1>{});
  with(Q40Codec{});
}

}  // namespace gemma4::cuda
