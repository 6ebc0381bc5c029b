// The input of a GEMV as fixed-point numbers in shared memory: 16 bits as two int8 limbs, with one scale for each group
// of 32 (gemm/gemv_int8.cu says why). From memory or flagged values here, from a norm in rms_norm.cuh.
#pragma once

#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/device/cp_async.cuh"
#include "backend/cuda/device/reduce.cuh"
#include "backend/cuda/gemm/limbs.cuh"
#include "backend/cuda/megakernel/flagged_memory.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // mbarriers
// Which 8 elements of the input a thread holds in pass `pass`. Eight threads share a tile of 64 columns, two threads
// each 16 of them. Of these the thread with h = 0 or 1 has columns 4h .. 4h + 3 and 4h + 8 .. 4h + 11: what lanes c =
// 2h and 2h + 1 of the A operand need, in the order of the codes.
struct Vector8 {
  int tile, k16, h;
  __device__ __forceinline__ explicit Vector8(int pass)
      : tile(pass * (kConsumerThreads / 8) + threadIdx.x / 8), k16(threadIdx.x % 8 / 2), h(threadIdx.x % 2) {}
  __device__ __forceinline__ int column() const { return k16 * 16 + 4 * h; }
};

__device__ __forceinline__ void split(const float4& a, const float4& b, float (&x)[8]) {
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

// The elements of a Vector8, past the L1 cache, because other CTAs wrote them.
__device__ __forceinline__ void load_vector8(const float* from, float (&x)[8]) {
  split(__ldcg(reinterpret_cast<const float4*>(from)), __ldcg(reinterpret_cast<const float4*>(from + 8)), x);
}
__device__ __forceinline__ void load_vector8(const __nv_bfloat16* from, float (&x)[8]) {
  const uint2 a = __ldcg(reinterpret_cast<const uint2*>(from)), b = __ldcg(reinterpret_cast<const uint2*>(from + 8));
  const uint32_t pairs[4] = {a.x, a.y, b.x, b.y};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack_bf16x2(pairs[i]);
    x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
  }
}
__device__ __forceinline__ void load_vector8(const void* from, bool f32, int at, float (&x)[8]) {
  f32 ? load_vector8(static_cast<const float*>(from) + at, x)
      : load_vector8(static_cast<const __nv_bfloat16*>(from) + at, x);
}

// 1.5 * 2^23: adding it rounds a value to a whole number, which the lowest bits of the sum then hold modulo 2^22.
constexpr float kRounding = 12582912;

// Of a group of 32, in each of its threads: minus the sum of its integers, and the value of one unit.
template <int kPasses>
struct InputScales {
  int minus[kPasses];
  float unit[kPasses];
};

// Stores the limbs of a thread's x; `count`: tiles that the CTA holds. `Input`: GemvInput, or another place. Each step
// is done for all passes before the next step: one pass alone would wait for its shuffles.
template <typename Input, int kPasses>
__device__ __forceinline__ InputScales<kPasses> store_limbs(const Input& input, int count,
                                                            const float (&x)[kPasses][8]) {
  uint32_t bits[kPasses], value[kPasses][8];
  int sum[kPasses];
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    float top[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // a row with NaN must become NaN
      asm("max.NaN.f32 %0, %0, %1;" : "+f"(top[i % 2]) : "f"(fabsf(x[pass][i])));
    }
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(top[0]) : "f"(top[1]));
    bits[pass] = __float_as_uint(top[0]);
  }
#pragma unroll
  for (int mask = 1; mask < 8; mask *= 2) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      bits[pass] = max(bits[pass], __shfl_xor_sync(0xffffffffu, bits[pass], mask));
    }
  }
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const uint32_t exponent = max(bits[pass] >> 23, 14u);  // below 14 the power of two would not be a normal number
    const float power = __uint_as_float((267 - exponent) << 23);  // 2^(13 - (exponent - 127)): the largest below 2^14
    uint32_t total = 0;                                           // modulo 2^22
#pragma unroll
    for (int i = 0; i < 8; ++i) total += value[pass][i] = __float_as_uint(fmaf(x[pass][i], power, kRounding));
    sum[pass] = static_cast<int>(total - 8 * __float_as_uint(kRounding));
  }
#pragma unroll
  for (int mask = 1; mask < 4; mask *= 2) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) sum[pass] += __shfl_xor_sync(0xffffffffu, sum[pass], mask);
  }
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const Vector8 e(pass);
    if (e.tile >= count) continue;
    uint8_t* limbs = input.limbs_of(e.tile, e.k16 / 2) + e.k16 % 2 * 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // columns 2c, 2c + 8, 2c + 1, 2c + 9 of lane c = 2h + i
      const uint32_t *v = value[pass] + 2 * i, a = v[0], b = v[4], c = v[1], d = v[5];
      uint8_t* to = limbs + (2 * e.h + i) * 8;
      *reinterpret_cast<uint32_t*>(to) = high_limbs(a + 128, b + 128, c + 128, d + 128);
      *reinterpret_cast<uint32_t*>(to + 32) = low_limbs(a, b, c, d);
    }
  }
  InputScales<kPasses> scales;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {  // infinity and NaN (exponent 255) make the row NaN
    const uint32_t exponent = max(bits[pass] >> 23, 14u);
    scales.minus[pass] = -sum[pass];
    scales.unit[pass] = exponent == 255 ? __uint_as_float(0x7fffffff) : __uint_as_float((exponent - 13) << 23);
  }
  return scales;
}

// `factor`: of the whole row; the limbs are those of the row without it.
template <typename Input, int kPasses>
__device__ __forceinline__ void store_scales(const Input& input, int count, const InputScales<kPasses>& scales,
                                             float factor) {
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const Vector8 e(pass);
    if (e.tile >= count || threadIdx.x % 4 != 0) continue;
    *reinterpret_cast<int2*>(input.scale_of(e.tile, e.k16 / 2)) =
        make_int2(scales.minus[pass], __float_as_int(scales.unit[pass] * factor));
  }
}

// Converts `count` tiles of x from tile `first` on, and on from tile 0 after the last. `epoch`: of flagged values.
template <int kPasses>
__device__ __forceinline__ void convert_tiles(const GemvInstruction& op, int first, int count, uint32_t epoch,
                                              const GemvInput& input) {
  float x[kPasses][8] = {};
  int columns[kPasses];  // beyond `count` those of the last tile, which are not stored
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const Vector8 e(pass);
    int tile = first + min(e.tile, count - 1);
    if (tile >= op.col_tiles) tile -= op.col_tiles;  // the range continues in the next row tile
    columns[pass] = max(tile, 0) * kWeightTileCols + e.column();
  }
  if (op.from.values) {
    uint4 flagged[2 * kPasses];
    const uint32_t* from = op.from.values;
    spin_wait([&](int i) { return from + flagged_offset(columns[i / 2]) + i % 2 * kSecondVector; }, epoch, flagged);
#pragma unroll
    for (int i = 0; i < 2 * kPasses; ++i) add_values(flagged[i], x[i / 2] + i % 2 * 4);
  } else {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) load_vector8(op.x, op.x_f32, columns[pass], x[pass]);
  }
  store_scales(input, count, store_limbs(input, count, x), 1.0f);
}

// Converts the tiles of x that this CTA multiplies, in as few passes as their number needs.
__device__ __forceinline__ void convert_input(const GemvInstruction& op, const GemvRange& range, uint32_t epoch,
                                              GemvInput input) {
  constexpr int kEach = kConsumerThreads / 8;  // tiles in a pass
  int count = op.whole ? op.col_tiles : range.end - range.begin, first = op.whole ? 0 : range.col;
  for (; count > 4 * kEach; count -= 4 * kEach, first += 4 * kEach) {  // on GPUs with few SMs
    convert_tiles<4>(op, first, 4 * kEach, epoch, input);
    input.limbs += 4 * kEach * kLimbBytes, input.scales += 4 * kEach * kGroupScaleBytes;
  }
  if (count <= kEach) {
    convert_tiles<1>(op, first, count, epoch, input);
  } else if (count <= 2 * kEach) {
    convert_tiles<2>(op, first, count, epoch, input);
  } else {
    convert_tiles<4>(op, first, count, epoch, input);
  }
}

#endif

}  // namespace gemma4::cuda
