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
  float next[kNormPasses][8];
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    if (pass < kStagedPasses) {
      split(*staged(pass, 0), *staged(pass, 1), next[pass]);
    } else {
      load_vector8(next_weights + offsets[pass], next[pass]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) x[pass][i] *= next[pass][i];
  }
  const InputScales<kNormPasses> scales = store_limbs(limbs.row(row), tiles, x);
  const float out_factor = rsqrtf(consumer_sum(squares, sums + kConsumerWarps) * inverse_dim + op.eps);
  store_scales(limbs.row(row), tiles, scales, out_factor);
  consumer_barrier();
  if (threadIdx.x == 0) limbs.set_flag(0, row, epoch);
  if (!last) return;
#pragma unroll
  for (int pass = 0; pass < kNormPasses; ++pass) {
    if (Vector8(pass).tile >= tiles) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[pass][i] *= out_factor;
    __nv_bfloat16* out = op.out + row * op.out_stride + offsets[pass];
    *reinterpret_cast<uint2*>(out) =
        make_uint2(pack_bf16x2(x[pass][0], x[pass][1]), pack_bf16x2(x[pass][2], x[pass][3]));
    *reinterpret_cast<uint2*>(out + 8) =
        make_uint2(pack_bf16x2(x[pass][4], x[pass][5]), pack_bf16x2(x[pass][6], x[pass][7]));
  }
}
#endif

}  // namespace gemma4::cuda
