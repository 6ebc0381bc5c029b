// RMSNorms of a step of several rows: CTA r computes row r, as every CTA does in the kernel of one row (rms_norm.cuh),
// keeps its residual stream, and writes the output as limbs for all CTAs.
#pragma once

#include "backend/cuda/megakernel/rms_norm.cuh"
#include "backend/cuda/megakernel/rows/exchange.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// Row `row` of an input that lies in memory, as limbs: the first GEMV of a list. Tiles a row: kNormPasses passes.
__device__ __forceinline__ void convert_row(const GemvInstruction& op, int row, const LimbBuffer& limbs,
                                            uint32_t epoch) {
  float x[kNormPasses][8];
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    const Vector8 e(pass);
    const int at = min(e.tile, op.col_tiles - 1) * kWeightTileCols + e.column();
    op.x_f32 ? load_vector8(static_cast<const float*>(op.x) + row * op.x_stride + at, x[pass])
             : load_vector8(static_cast<const __nv_bfloat16*>(op.x) + row * op.x_stride + at, x[pass]);
  }
  store_scales(limbs.row(row), op.col_tiles, store_limbs(limbs.row(row), op.col_tiles, x), 1.0f);
  consumer_barrier();
  if (threadIdx.x == 0) limbs.set_flag(0, row, epoch);
}

// y of the row: the sums of the GEMV before. `before`: that instruction's epoch.
__device__ __forceinline__ void receive_sums(const uint64_t* sums, uint32_t before, const int (&offsets)[kNormPasses],
                                             float (&y)[kNormPasses][8]) {
  TaggedPair pairs[kNormPasses * 4];
  const auto address = [&](int i) { return sums + offsets[i / 4] + i % 4 / 2 * 8 + i % 2 * 2; };
  wait_for_pairs(address, before, pairs);
#pragma unroll
  for (int i = 0; i < kNormPasses * 8; ++i) y[i / 8][i % 8] = pairs[i / 2].value(i % 2);
}

// The weights of the output's norm, of which a part waits in the scratch, as in rms_norm.cuh.
struct NextWeights {
  const float* from;
  float4* staged;
  __device__ __forceinline__ float4* at(int pass, int half) const {
    return staged + (2 * pass + half) * kConsumerThreads + threadIdx.x;
  }
  __device__ __forceinline__ void request(const int (&offsets)[kNormPasses]) const {
#pragma unroll
    for (int pass = 0; pass < kStagedPasses; ++pass) {
      copy16_async(at(pass, 0), from + offsets[pass], true);
      copy16_async(at(pass, 1), from + offsets[pass] + 8, true);
    }
    copy_commit();
  }
  __device__ __forceinline__ void multiply(const int (&offsets)[kNormPasses], float (&x)[kNormPasses][8]) const {
#pragma unroll
    for (int pass = 0; pass < kNormPasses; ++pass) {
      float next[8];
      if (pass < kStagedPasses) {
        split(*at(pass, 0), *at(pass, 1), next);
      } else {
        load_vector8(from + offsets[pass], next);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) x[pass][i] *= next[i];
    }
  }
};

// The row's output in memory: x times `factor`.
__device__ __forceinline__ void write_output(const RmsNormInstruction& op, int row, const int (&offsets)[kNormPasses],
                                             const float (&x)[kNormPasses][8], float factor) {
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    if (Vector8(pass).tile >= op.dim / kWeightTileCols) continue;
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = x[pass][i] * factor;
    __nv_bfloat16* out = op.out + row * op.out_stride + offsets[pass];
    *reinterpret_cast<uint2*>(out) = make_uint2(pack_bf16x2(v[0], v[1]), pack_bf16x2(v[2], v[3]));
    *reinterpret_cast<uint2*>(out + 8) = make_uint2(pack_bf16x2(v[4], v[5]), pack_bf16x2(v[6], v[7]));
  }
}

// `sums` [2 * kConsumerWarps] in shared memory. `epoch`: of this instruction. The output goes to memory, too, where it
// is the `last` of the list.
__device__ __forceinline__ void run_rows_norm(const RmsNormInstruction& op, int row, const RowsWorkspace& w,
                                              const LimbBuffer& limbs, const ResidualStream& residual, uint8_t* scratch,
                                              uint32_t epoch, bool last, float* sums, InstructionClock& clock) {
  float post[kNormPasses][8], x[kNormPasses][8] = {}, y[kNormPasses][8];
  const int tiles = op.dim / kWeightTileCols;
  const float inverse_dim = 1.0f / static_cast<float>(op.dim);
  int offsets[kNormPasses];  // beyond the end those of the last tile
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    const Vector8 e(pass);
    offsets[pass] = min(e.tile, tiles - 1) * kWeightTileCols + e.column();
  }
  const NextWeights next = {op.next ? op.next : op.post, reinterpret_cast<float4*>(scratch)};
  next.request(offsets);
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) load_vector8(op.post + offsets[pass], post[pass]);
  receive_sums(w.sums + row * kResidualDimMax, epoch - 1, offsets, y);
  clock.input_ready();
  float squares = 0;
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    if (Vector8(pass).tile >= tiles) continue;
    squares += sum_of_squares(y[pass]);
#pragma unroll
    for (int i = 0; i < 8; ++i) y[pass][i] *= post[pass][i];
    op.load_x ? load_vector8(op.x + row * op.x_stride + offsets[pass], x[pass]) : residual.load(pass, x[pass]);
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
  copy_wait<0>();
  if (!op.out) return;
  next.multiply(offsets, x);
  const InputScales<kNormPasses> scales = store_limbs(limbs.row(row), tiles, x);
  const float out_factor = rsqrtf(consumer_sum(squares, sums + kConsumerWarps) * inverse_dim + op.eps);
  store_scales(limbs.row(row), tiles, scales, out_factor);
  consumer_barrier();
  if (threadIdx.x == 0) limbs.set_flag(0, row, epoch);
  if (last) write_output(op, row, offsets, x, out_factor);
}
#endif

}  // namespace gemma4::cuda
