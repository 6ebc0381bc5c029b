// x of a product as fixed-point numbers in shared memory, from memory or from the norms before it.
#pragma once

#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/device/fixed.cuh"
#include "backend/cuda/device/reduce.cuh"
#include "backend/cuda/step_words.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // bulk copies and their barriers
// A thread's place in a chunk of 64: eight threads take one; of 16 columns `step`, this one those at base .. base + 3
// and base + 8 .. base + 11, which is what lanes c = 2h and 2h + 1 of the A operand meet, in the order of the codes.
struct Eight {
  int chunk, step, h;
  __device__ __forceinline__ explicit Eight(int pass)
      : chunk(pass * (kComputeThreads / 8) + threadIdx.x / 8), step(threadIdx.x % 8 / 2), h(threadIdx.x % 2) {}
  __device__ __forceinline__ int column() const { return step * 16 + 4 * h; }
};

// Eight values of a row, in the order above, past the first level of cache: other blocks wrote them.
__device__ __forceinline__ void load_eight(const float* from, float (&x)[8]) {
  const float4 a = __ldcg(reinterpret_cast<const float4*>(from)), b = __ldcg(reinterpret_cast<const float4*>(from + 8));
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ __forceinline__ void load_eight(const __nv_bfloat16* from, float (&x)[8]) {
  const uint2 a = __ldcg(reinterpret_cast<const uint2*>(from)), b = __ldcg(reinterpret_cast<const uint2*>(from + 8));
  const uint32_t words[4] = {a.x, a.y, b.x, b.y};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack_bf16x2(words[i]);
    x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
  }
}
__device__ __forceinline__ void load_eight(const void* from, bool f32, int at, float (&x)[8]) {
  f32 ? load_eight(static_cast<const float*>(from) + at, x)
      : load_eight(static_cast<const __nv_bfloat16*>(from) + at, x);
}

// 1.5 * 2^23: what is added to it is rounded to a whole number, which the sum's bits then hold, modulo 2^22.
constexpr float kRounding = 12582912;

// Digits and facts of a thread's eights of x, eight `pass` at place `pass * 32 + e.chunk` of the block's `count` chunks
// (linear_fixed.cu tells what they are). Step by step for all of them: one alone would wait for its shuffles.
template <int kPasses>
__device__ __forceinline__ void put_eights(uint8_t* input, int count, const float (&x)[kPasses][8]) {
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
    const Eight e(pass);
    if (e.chunk >= count) continue;
    uint8_t* digits = input + e.chunk * kDigitBytes + e.step / 2 * 64 + e.step % 2 * 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // columns 2c, 2c + 8, 2c + 1, 2c + 9 of lane c = 2h + i
      const uint32_t *v = value[pass] + 2 * i, a = v[0], b = v[4], c = v[1], d = v[5];
      uint8_t* to = digits + (2 * e.h + i) * 8;
      *reinterpret_cast<uint32_t*>(to) = next_bytes(a + 128, b + 128, c + 128, d + 128);
      *reinterpret_cast<uint32_t*>(to + 32) = low_bytes(a, b, c, d);
    }
    if (threadIdx.x % 4 == 0) {  // infinity and NaN (exponent 255) make the row NaN
      const uint32_t exponent = max(bits[pass] >> 23, 14u);
      const float unit = exponent == 255 ? __uint_as_float(0x7fffffff) : __uint_as_float((exponent - 13) << 23);
      *reinterpret_cast<int2*>(input + kDigitsBytes + e.chunk * kFactBytes + e.step / 2 * 8) =
          make_int2(-sum[pass], __float_as_int(unit));
    }
  }
}

// Whether a chunk's place is its column; else its distance from the block's first unit.
__device__ __forceinline__ bool by_column(const StepLinear& op) { return op.chunks <= kStepChunks; }

// The chunks of x that this block multiplies; of words, `number` says which are new.
__device__ __forceinline__ void bring_input(const StepLinear& op, const Range& range, uint32_t number, uint8_t* input) {
  constexpr int kPasses = (kStepChunks + kComputeThreads / 8 - 1) / (kComputeThreads / 8);
  const bool whole = by_column(op);
  const int count = whole ? op.chunks : range.end - range.begin, first = whole ? 0 : range.begin % op.chunks;
  float x[kPasses][8] = {};
  const auto column = [&](int pass) {
    const Eight e(pass);
    int chunk = first + e.chunk;
    if (chunk >= op.chunks) chunk -= op.chunks;  // the range goes on in the next panel
    return e.chunk < count ? chunk * kChunkCols + e.column() : -1;
  };
  if (op.from.at) {
    uint4 words[2 * kPasses];
    const auto place = [&](int i) {
      const int at = column(i / 2);
      return at < 0 ? nullptr : op.from.at + at + i % 2 * 8;
    };
    await(place, number, words);
#pragma unroll
    for (int i = 0; i < 2 * kPasses; ++i) add_values(words[i], x[i / 2] + i % 2 * 4);
  } else {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int at = column(pass);
      if (at >= 0) load_eight(op.x, op.x_f32, at, x[pass]);
    }
  }
  put_eights(input, min(count, kStepChunks), x);
}

// The residual stream in shared memory: each thread finds its own eights, as two rows of float4.
struct Residual {
  static constexpr int kEights = kStepDim / 8;
  float4* values;  // [2, kEights]
  __device__ __forceinline__ float4& at(int pass, int half) const {
    return values[half * kEights + pass * kComputeThreads + threadIdx.x];
  }
  __device__ __forceinline__ void load(int pass, float (&x)[8]) const {
    const float4 a = at(pass, 0), b = at(pass, 1);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
  }
  __device__ __forceinline__ void store(int pass, const float (&x)[8]) const {
    at(pass, 0) = make_float4(x[0], x[1], x[2], x[3]), at(pass, 1) = make_float4(x[4], x[5], x[6], x[7]);
  }
  __device__ __forceinline__ void write(float* to, int dim) const;
};

constexpr int kNormPasses = (kStepDim / kChunkCols + kComputeThreads / 8 - 1) / (kComputeThreads / 8);

__device__ __forceinline__ void Residual::write(float* to, int dim) const {
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    const Eight e(pass);
    const int column = e.chunk * kChunkCols + e.column();
    if (column >= dim) continue;
    *reinterpret_cast<float4*>(to + column) = at(pass, 0);
    *reinterpret_cast<float4*>(to + column + 8) = at(pass, 1);
  }
}

// Sum over the computing warps, the same in every thread. Each `sums` [8] serves once between two other barriers.
__device__ __forceinline__ float compute_sum(float value, float* sums) {
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  compute_barrier();
  float total = 0;
#pragma unroll
  for (int i = 0; i < kStreamWarps; ++i) total += sums[i];
  return total;
}

// Eight weights of a norm for each pass; zero past the end.
__device__ __forceinline__ void load_weights(const float* weights, int dim, float (&to)[kNormPasses][8]) {
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    const Eight e(pass);
    const int at = e.chunk * kChunkCols + e.column();
#pragma unroll
    for (int i = 0; i < 8; ++i) to[pass][i] = 0;
    if (at < dim) load_eight(weights + at, to[pass]);
  }
}

// The norms; `barrier` is waited for once weights are under way. The result becomes the next product's input.
__device__ __forceinline__ void run_norm(const StepNorm& op, const Sums& ranks, const GridBarrier& barrier,
                                         const Residual& residual, uint8_t* input, float* sums) {
  float post[kNormPasses][8], next[kNormPasses][8], y[kNormPasses][8] = {}, squares = 0;
  const int chunks = op.dim / kChunkCols;
  load_weights(op.post, op.dim, post);
  if (op.next) load_weights(op.next, op.dim, next);
  if (op.sum) {
    ranks.wait(op.sum, min(static_cast<int>(threadIdx.x) / 32 * 4, chunks - 1) * kChunkCols);
    const Eight e(0);
    ranks.take(op.sum, e.chunk * kChunkCols + e.column(), kComputeThreads / 8 * kChunkCols, op.dim, y);
  } else {
    barrier.wait();
#pragma unroll
    for (int pass = 0; pass < kNormPasses; ++pass) {
      const Eight e(pass);
      const int at = e.chunk * kChunkCols + e.column();
      if (at < op.dim) load_eight(op.y, op.y_f32, at, y[pass]);
    }
  }
  float x[kNormPasses][8];
#pragma unroll
  for (int i = 0; i < kNormPasses * 8; ++i) squares += y[i / 8][i % 8] * y[i / 8][i % 8];
  const float factor = rsqrtf(compute_sum(squares, sums) / op.dim + op.eps);
  squares = 0;
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    const Eight e(pass);
    const int at = e.chunk * kChunkCols + e.column();
#pragma unroll
    for (int i = 0; i < 8; ++i) x[pass][i] = 0;
    if (at >= op.dim) continue;
    if (op.load_x) {
      load_eight(op.x + at, x[pass]);
    } else {
      residual.load(pass, x[pass]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[pass][i] = (x[pass][i] + y[pass][i] * factor * post[pass][i]) * op.scale;
      squares += x[pass][i] * x[pass][i];
    }
    residual.store(pass, x[pass]);
  }
  if (!op.out) return;
  const float next_factor = rsqrtf(compute_sum(squares, sums + kStreamWarps) / op.dim + op.eps);
#pragma unroll
  for (int i = 0; i < kNormPasses * 8; ++i) x[i / 8][i % 8] *= next_factor * next[i / 8][i % 8];
  put_eights(input, min(chunks, kStepChunks), x);
  if (blockIdx.x != 0) return;
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    const Eight e(pass);
    if (e.chunk >= chunks) continue;
    __nv_bfloat16* out = op.out + e.chunk * kChunkCols + e.column();
    *reinterpret_cast<uint2*>(out) =
        make_uint2(pack_bf16x2(x[pass][0], x[pass][1]), pack_bf16x2(x[pass][2], x[pass][3]));
    *reinterpret_cast<uint2*>(out + 8) =
        make_uint2(pack_bf16x2(x[pass][4], x[pass][5]), pack_bf16x2(x[pass][6], x[pass][7]));
  }
}
#endif

}  // namespace gemma4::cuda
