// x of a product as fixed-point numbers in shared memory, from memory or from the norms before it.
#pragma once

#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/device/cp_async.cuh"
#include "backend/cuda/device/reduce.cuh"
#include "backend/cuda/gemm/limbs.cuh"
#include "backend/cuda/megakernel/flagged_memory.cuh"

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

__device__ __forceinline__ void split(const float4& a, const float4& b, float (&x)[8]) {
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

// Eight values of a row, in the order above, past the first level of cache: other blocks wrote them.
__device__ __forceinline__ void load_eight(const float* from, float (&x)[8]) {
  split(__ldcg(reinterpret_cast<const float4*>(from)), __ldcg(reinterpret_cast<const float4*>(from + 8)), x);
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

// What a group of 32 has besides its digits, in each of its threads: minus their sum, and what one of them stands for.
template <int kPasses>
struct Facts {
  int minus[kPasses];
  float unit[kPasses];
};

// Digits of a thread's eights of x, eight `pass` at place `pass * 32 + e.chunk` of the block's `count` chunks
// (gemm/gemv_int8.cu tells what they are). Step by step for all of them: one alone would wait for its shuffles.
template <int kPasses>
__device__ __forceinline__ Facts<kPasses> put_digits(uint8_t* input, int count, const float (&x)[kPasses][8]) {
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
      *reinterpret_cast<uint32_t*>(to) = high_limbs(a + 128, b + 128, c + 128, d + 128);
      *reinterpret_cast<uint32_t*>(to + 32) = low_limbs(a, b, c, d);
    }
  }
  Facts<kPasses> facts;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {  // infinity and NaN (exponent 255) make the row NaN
    const uint32_t exponent = max(bits[pass] >> 23, 14u);
    facts.minus[pass] = -sum[pass];
    facts.unit[pass] = exponent == 255 ? __uint_as_float(0x7fffffff) : __uint_as_float((exponent - 13) << 23);
  }
  return facts;
}

// `factor`: of the whole row, whose digits are those of the row without it.
template <int kPasses>
__device__ __forceinline__ void put_facts(uint8_t* input, int count, const Facts<kPasses>& facts, float factor) {
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const Eight e(pass);
    if (e.chunk >= count || threadIdx.x % 4 != 0) continue;
    *reinterpret_cast<int2*>(input + kDigitsBytes + e.chunk * kFactBytes + e.step / 2 * 8) =
        make_int2(facts.minus[pass], __float_as_int(facts.unit[pass] * factor));
  }
}

// `count` chunks of x from chunk `first` on, around the end; of words, `number` says which are new.
template <int kPasses>
__device__ __forceinline__ void bring_chunks(const StepLinear& op, int first, int count, uint32_t number,
                                             uint8_t* input) {
  float x[kPasses][8] = {};
  int columns[kPasses];  // of a chunk past the end, which is not put: the last one's
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const Eight e(pass);
    int chunk = first + min(e.chunk, count - 1);
    if (chunk >= op.chunks) chunk -= op.chunks;  // the range goes on in the next panel
    columns[pass] = max(chunk, 0) * kWeightTileCols + e.column();
  }
  if (op.from.at) {
    uint4 words[2 * kPasses];
    const uint32_t* from = op.from.at;
    await([&](int i) { return from + word_place(columns[i / 2]) + i % 2 * kOtherFour; }, number, words);
#pragma unroll
    for (int i = 0; i < 2 * kPasses; ++i) add_values(words[i], x[i / 2] + i % 2 * 4);
  } else {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) load_eight(op.x, op.x_f32, columns[pass], x[pass]);
  }
  put_facts(input, count, put_digits(input, count, x), 1.0f);
}

// The chunks of x that this block multiplies.
__device__ __forceinline__ void bring_input(const StepLinear& op, const Units& units, uint32_t number, uint8_t* input) {
  constexpr int kEach = kComputeThreads / 8;  // chunks of a pass
  static_assert(kStepChunks <= 4 * kEach);
  const bool whole = op.whole;
  const int count = whole ? op.chunks : units.end - units.begin, first = whole ? 0 : units.col;
  if (count <= kEach) {
    bring_chunks<1>(op, first, count, number, input);
  } else if (count <= 2 * kEach) {
    bring_chunks<2>(op, first, count, number, input);
  } else {
    bring_chunks<4>(op, first, count, number, input);
  }
}

// The residual stream in shared memory: each thread finds its own eights, as two rows of float4.
struct Residual {
  static constexpr int kEights = kStepDim / 8;
  float4* values;  // [2, kEights]
  __device__ __forceinline__ float4& at(int pass, int half) const {
    return values[half * kEights + pass * kComputeThreads + threadIdx.x];
  }
  __device__ __forceinline__ void load(int pass, float (&x)[8]) const { split(at(pass, 0), at(pass, 1), x); }
  __device__ __forceinline__ void store(int pass, const float (&x)[8]) const {
    at(pass, 0) = make_float4(x[0], x[1], x[2], x[3]), at(pass, 1) = make_float4(x[4], x[5], x[6], x[7]);
  }
  __device__ __forceinline__ void write(float* to, int dim) const;
};

__device__ __forceinline__ float squares_of(const float (&x)[8]) {
  return ((x[0] * x[0] + x[1] * x[1]) + (x[2] * x[2] + x[3] * x[3])) +
         ((x[4] * x[4] + x[5] * x[5]) + (x[6] * x[6] + x[7] * x[7]));
}

constexpr int kNormPasses = (kStepDim / kWeightTileCols + kComputeThreads / 8 - 1) / (kComputeThreads / 8);

constexpr int kParked = kScratchBytes / (kComputeThreads * 32);  // passes of a norm's second weights
static_assert(kParked <= kNormPasses);

__device__ __forceinline__ void Residual::write(float* to, int dim) const {
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    const Eight e(pass);
    const int column = e.chunk * kWeightTileCols + e.column();
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
  static_assert(kConsumerWarps == 8);
  const float4 a = reinterpret_cast<const float4*>(sums)[0], b = reinterpret_cast<const float4*>(sums)[1];
  return ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
}

// The norms; `barrier` is waited for once weights are under way. The result becomes the next product's input: its
// digits before its factor is known, which only facts have.
__device__ __forceinline__ void run_norm(const StepNorm& op, const Sums& ranks, const GridBarrier& barrier,
                                         const Residual& residual, uint8_t* input, float* sums) {
  float post[kNormPasses][8], next[kNormPasses][8], x[kNormPasses][8] = {}, y[kNormPasses][8] = {};
  const int chunks = op.dim / kWeightTileCols;
  const float share = 1.0f / static_cast<float>(op.dim);
  int places[kNormPasses];  // of eights past the end: the last chunk's
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    const Eight e(pass);
    places[pass] = min(e.chunk, chunks - 1) * kWeightTileCols + e.column();
    load_eight(op.post + places[pass], post[pass]);
  }
  // The other weights wait where digits come later, as far as there is room: registers are full of words meanwhile, and
  // to ask for them after the words would be on everybody's way.
  const float* next_weights = op.next ? op.next : op.post;
  const auto parked = [&](int pass, int half) {
    return reinterpret_cast<float4*>(input) + (2 * pass + half) * kComputeThreads + threadIdx.x;
  };
#pragma unroll
  for (int pass = 0; pass < kParked; ++pass) {
    copy16_async(parked(pass, 0), next_weights + places[pass], true);
    copy16_async(parked(pass, 1), next_weights + places[pass] + 8, true);
  }
  copy_commit();
#pragma unroll
  for (int pass = kParked; pass < kNormPasses; ++pass) load_eight(next_weights + places[pass], next[pass]);
  if (op.sum) {
    ranks.wait(op.sum, min(static_cast<int>(threadIdx.x) / 32 * 4, chunks - 1) * kWeightTileCols);
    ranks.take(op.sum, places, y);
  } else {
    barrier.wait();
#pragma unroll
    for (int pass = 0; pass < kNormPasses; ++pass) load_eight(op.y, op.y_f32, places[pass], y[pass]);
  }
  copy_wait<0>();
#pragma unroll
  for (int pass = 0; pass < kParked; ++pass) split(*parked(pass, 0), *parked(pass, 1), next[pass]);
  float squares = 0;
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    if (Eight(pass).chunk >= chunks) continue;
    squares += squares_of(y[pass]);
#pragma unroll
    for (int i = 0; i < 8; ++i) y[pass][i] *= post[pass][i];
    op.load_x ? load_eight(op.x + places[pass], x[pass]) : residual.load(pass, x[pass]);
  }
  const float factor = rsqrtf(compute_sum(squares, sums) * share + op.eps);
  squares = 0;
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    if (Eight(pass).chunk >= chunks) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[pass][i] = (x[pass][i] + y[pass][i] * factor) * op.scale;
    squares += squares_of(x[pass]);
    residual.store(pass, x[pass]);
  }
  if (!op.out) return;
#pragma unroll
  for (int i = 0; i < kNormPasses * 8; ++i) x[i / 8][i % 8] *= next[i / 8][i % 8];
  const Facts<kNormPasses> facts = put_digits(input, min(chunks, kStepChunks), x);
  const float next_factor = rsqrtf(compute_sum(squares, sums + kConsumerWarps) * share + op.eps);
  put_facts(input, min(chunks, kStepChunks), facts, next_factor);
  if (blockIdx.x != 0) return;
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    if (Eight(pass).chunk >= chunks) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[pass][i] *= next_factor;
    __nv_bfloat16* out = op.out + places[pass];
    *reinterpret_cast<uint2*>(out) =
        make_uint2(pack_bf16x2(x[pass][0], x[pass][1]), pack_bf16x2(x[pass][2], x[pass][3]));
    *reinterpret_cast<uint2*>(out + 8) =
        make_uint2(pack_bf16x2(x[pass][4], x[pass][5]), pack_bf16x2(x[pass][6], x[pass][7]));
  }
}
#endif

}  // namespace gemma4::cuda
