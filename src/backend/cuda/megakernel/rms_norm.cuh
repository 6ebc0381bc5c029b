// RMSNorms of the decode megakernel: x = (x + norm(y) * post) * scale; out = norm(x) * next. Every CTA computes the
// whole norm for itself, keeps the residual stream x in shared memory, and leaves the output there as the next GEMV's
// input.
#pragma once

#include "backend/cuda/megakernel/grid_barrier.cuh"
#include "backend/cuda/megakernel/instruction_clock.cuh"
#include "backend/cuda/megakernel/int8_input.cuh"
#include "backend/cuda/megakernel/rank_all_reduce.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // mbarriers
constexpr int kNormPasses = (kResidualDimMax / kWeightTileCols + kConsumerThreads / 8 - 1) / (kConsumerThreads / 8);

constexpr int kStagedPasses = kScratchLeast / (kConsumerThreads * 32);  // passes whose `next` weights fit the scratch
static_assert(kStagedPasses <= kNormPasses);

// The residual stream in shared memory: each thread has its own Vector8s, as two rows of float4.
struct ResidualStream {
  static constexpr int kVectors = kResidualDimMax / 8;
  float4* values;  // [2, kVectors]
  __device__ __forceinline__ float4& at(int pass, int half) const {
    return values[half * kVectors + pass * kConsumerThreads + threadIdx.x];
  }
  __device__ __forceinline__ void load(int pass, float (&x)[8]) const { split(at(pass, 0), at(pass, 1), x); }
  __device__ __forceinline__ void store(int pass, const float (&x)[8]) const {
    at(pass, 0) = make_float4(x[0], x[1], x[2], x[3]), at(pass, 1) = make_float4(x[4], x[5], x[6], x[7]);
  }
  __device__ __forceinline__ void write(float* to, int dim) const {
#pragma unroll
    for (int pass = 0; pass < kNormPasses; ++pass) {
      const Vector8 e(pass);
      const int column = e.tile * kWeightTileCols + e.column();
      if (column >= dim) continue;
      *reinterpret_cast<float4*>(to + column) = at(pass, 0);
      *reinterpret_cast<float4*>(to + column + 8) = at(pass, 1);
    }
  }
};

__device__ __forceinline__ float sum_of_squares(const float (&x)[8]) {
  return ((x[0] * x[0] + x[1] * x[1]) + (x[2] * x[2] + x[3] * x[3])) +
         ((x[4] * x[4] + x[5] * x[5]) + (x[6] * x[6] + x[7] * x[7]));
}

// Sum over the consumer warps, the same in every thread. `sums` [8] may be used once between two other barriers.
__device__ __forceinline__ float consumer_sum(float value, float* sums) {
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  consumer_barrier();
  static_assert(kConsumerWarps == 8);
  const float4 a = reinterpret_cast<const float4*>(sums)[0], b = reinterpret_cast<const float4*>(sums)[1];
  return ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
}

// Loads what a norm needs: the weights first, then y once it is ready. Part of `next` waits in the scratch, where the
// limbs will go, as far as it fits: the registers are full while y arrives, and loading it after y would add a round
// trip to memory in every CTA.
__device__ __forceinline__ void load_norm_inputs(const RmsNormInstruction& op, const RankAllReduce& ranks,
                                                 const GridBarrier& barrier, int tiles,
                                                 const int (&offsets)[kNormPasses], uint8_t* scratch,
                                                 float (&post)[kNormPasses][8], float (&next)[kNormPasses][8],
                                                 float (&y)[kNormPasses][8]) {
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) load_vector8(op.post + offsets[pass], post[pass]);
  const float* next_weights = op.next ? op.next : op.post;
  const auto staged = [&](int pass, int half) {
    return reinterpret_cast<float4*>(scratch) + (2 * pass + half) * kConsumerThreads + threadIdx.x;
  };
#pragma unroll
  for (int pass = 0; pass < kStagedPasses; ++pass) {
    copy16_async(staged(pass, 0), next_weights + offsets[pass], true);
    copy16_async(staged(pass, 1), next_weights + offsets[pass] + 8, true);
  }
  copy_commit();
#pragma unroll
  for (int pass = kStagedPasses; pass < kNormPasses; ++pass) load_vector8(next_weights + offsets[pass], next[pass]);
  if (op.all_reduce) {
    ranks.wait(op.all_reduce, min(static_cast<int>(threadIdx.x) / 32 * 4, tiles - 1) * kWeightTileCols);
    ranks.receive(op.all_reduce, offsets, y);
  } else {
    barrier.wait();
#pragma unroll
    for (int pass = 0; pass < kNormPasses; ++pass) load_vector8(op.y, op.y_f32, offsets[pass], y[pass]);
  }
  copy_wait<0>();
#pragma unroll
  for (int pass = 0; pass < kStagedPasses; ++pass) split(*staged(pass, 0), *staged(pass, 1), next[pass]);
}

// The output as the next GEMV's input. Its limbs are stored before the norm's factor is known; only the group scales
// need it. CTA 0 also writes the output to memory.
__device__ __forceinline__ void store_norm_output(const RmsNormInstruction& op, int tiles,
                                                  const int (&offsets)[kNormPasses], float inverse_dim, float squares,
                                                  float (&x)[kNormPasses][8], const float (&next)[kNormPasses][8],
                                                  const GemvInput& input, float* sums) {
#pragma unroll
  for (int i = 0; i < kNormPasses * 8; ++i) x[i / 8][i % 8] *= next[i / 8][i % 8];
  const InputScales<kNormPasses> scales = store_limbs(input, tiles, x);
  const float factor = rsqrtf(consumer_sum(squares, sums + kConsumerWarps) * inverse_dim + op.eps);
  store_scales(input, tiles, scales, factor);
  if (blockIdx.x != 0) return;
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    if (Vector8(pass).tile >= tiles) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[pass][i] *= factor;
    __nv_bfloat16* out = op.out + offsets[pass];
    *reinterpret_cast<uint2*>(out) =
        make_uint2(pack_bf16x2(x[pass][0], x[pass][1]), pack_bf16x2(x[pass][2], x[pass][3]));
    *reinterpret_cast<uint2*>(out + 8) =
        make_uint2(pack_bf16x2(x[pass][4], x[pass][5]), pack_bf16x2(x[pass][6], x[pass][7]));
  }
}

// `sums` [2 * kConsumerWarps] in shared memory.
__device__ __forceinline__ void run_rms_norm(const RmsNormInstruction& op, const RankAllReduce& ranks,
                                             const GridBarrier& barrier, const ResidualStream& residual,
                                             const GemvInput& input, float* sums, InstructionClock& clock) {
  float post[kNormPasses][8], next[kNormPasses][8], x[kNormPasses][8] = {}, y[kNormPasses][8] = {};
  const int tiles = op.dim / kWeightTileCols;
  const float inverse_dim = 1.0f / static_cast<float>(op.dim);
  int offsets[kNormPasses];  // beyond the end those of the last tile
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    const Vector8 e(pass);
    offsets[pass] = min(e.tile, tiles - 1) * kWeightTileCols + e.column();
  }
  load_norm_inputs(op, ranks, barrier, tiles, offsets, input.limbs, post, next, y);
  clock.input_ready();
  float squares = 0;
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    if (Vector8(pass).tile >= tiles) continue;
    squares += sum_of_squares(y[pass]);
#pragma unroll
    for (int i = 0; i < 8; ++i) y[pass][i] *= post[pass][i];
    op.load_x ? load_vector8(op.x + offsets[pass], x[pass]) : residual.load(pass, x[pass]);
  }
  const float factor = rsqrtf(consumer_sum(squares, sums) * inverse_dim + op.eps);
  squares = 0;
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    if (Vector8(pass).tile >= tiles) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[pass][i] = (x[pass][i] + y[pass][i] * factor) * op.scale;
    squares += sum_of_squares(x[pass]);
    residual.store(pass, x[pass]);
  }
  if (op.out) store_norm_output(op, tiles, offsets, inverse_dim, squares, x, next, input, sums);
}
#endif

}  // namespace gemma4::cuda
