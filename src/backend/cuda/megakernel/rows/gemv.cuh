// The GEMVs of a step of several rows: a CTA's range of the packed weights times all rows. Weights arrive in the
// pipeline as in the kernel of one row; beside them in each stage arrive the limbs of all rows, from memory.
//
// The arithmetic is that of one row (gemv.cuh): the same limbs, the same exact integer products, and the same order of
// the float32 sums. So a row's results are equal to the bit, however many rows there are.
#pragma once

#include "backend/cuda/megakernel/gemv.cuh"
#include "backend/cuda/megakernel/instruction_clock.cuh"
#include "backend/cuda/megakernel/rows/exchange.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// The limb warp: beside each stage of weights the limbs of its columns.
template <typename Plan>
__device__ __forceinline__ void produce_limbs(const GemvInstruction& op, const LimbBuffer& limbs, uint32_t epoch,
                                              const Pipeline<Plan>& pipeline, uint64_t* limbs_full,
                                              PipelineState<Plan>& state, int lane) {
  const int tile_bytes = limbs.rows * kRowTileBytes;
  const GemvRange range(op);
  const int tail = range.tail(op);
  LimbWait wait{limbs.flags, epoch, limbs.rows, op.col_tiles, op.limbs == LimbSource::kNorm};
#pragma unroll 1
  for (int first = tail, end = range.end;; end = first, first = range.begin) {
    for (StageSlices at(GemvRange(op, first, end), op.col_tiles); at.more(); at.next(), state.next()) {
      barrier_wait(pipeline.empty_at + 8 * state.stage, state.phase ^ 1);
      wait.wait(at.col, at.length, lane);
      uint8_t* to = pipeline.at(state) + Plan::kLimbsAt;
      const uint8_t* from = limbs.tiles + at.col * tile_bytes;
      const uint32_t bytes = at.length * tile_bytes;
      if (!pipeline.bulk_copies) {
        for (uint32_t i = lane * 16; i < bytes; i += 32 * 16) copy16_async(to + i, from + i, true);
        barrier_arrive_after_copies(&limbs_full[state.stage]);
      } else if (lane == 0) {
        fence_before_bulk_reads();
        barrier_expect(&limbs_full[state.stage], bytes);
        bulk_load(to, from, bytes, &limbs_full[state.stage]);
      }
      __syncwarp();
    }
    if (first == range.begin) return;
  }
}

// Sums of a row tile: of x row 4 t + c (lane 4 g + c), matrix rows g and g + 8 (times 16), by the number of the group
// of 32 columns modulo 4. With one row each of the four sums is in a lane of its own; the order is the same.
template <int kXTiles>
struct RowSums {
  float of[kXTiles][2][4] = {};
};

// Adds the products of a weight tile and all rows. `odd`: the tile is the second of a pair. What lies behind the last
// row is multiplied like a row, and never written.
template <typename Codec, int kRows>
__device__ __forceinline__ void multiply_rows(const uint8_t* tile, const uint8_t* limbs, int rows, bool odd, int lane,
                                              RowSums<kRows / 4>& sums) {
  const int g = lane / 4, c = lane % 4;
  const uint4 w = words4(tile + lane * 16);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t w0 = half ? w.z : w.x, w1 = half ? w.w : w.y;
    const uint32_t a[4] = {w0 & 0x0f0f0f0fu, w0 & 0xf0f0f0f0u, w1 & 0x0f0f0f0fu, w1 & 0xf0f0f0f0u};
    GroupScales of;
    of.scale = group_scale(Codec{}, tile, g, half), of.zero = group_zeros(Codec{}, tile, g, half);
#pragma unroll
    for (int t = 0; t < kRows / 4; ++t) {
      const uint2 b = words2(limbs + (half * rows + t * 4) * (kLimbBytes / 2) + lane * 8);
      of.x_scale = *reinterpret_cast<const int2*>(limbs + rows * kLimbBytes +
                                                  (half * rows + t * 4 + c) * (kGroupScaleBytes / 2));
      int d[4] = {};
      mma_u8s8(d, a, b.x, b.y);
      const GroupTerms terms(of, d);
      float(&sum)[2][4] = sums.of[t];
      const int group = (odd ? 2 : 0) + half;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        sum[i][group] = fmaf(terms.factor[i], static_cast<float>(terms.value[i]), sum[i][group]);
    }
  }
}

// Multiplies `count` work units of a row tile as their stages arrive.
template <typename Codec, typename Plan>
__device__ __forceinline__ void multiply_rows_tiles(const Pipeline<Plan>& pipeline, const uint64_t* limbs_full,
                                                    PipelineState<Plan>& state, int rows, int count, int warp, int lane,
                                                    RowSums<Plan::kRows / 4>& sums, InstructionClock& clock,
                                                    bool& first) {
  constexpr int kUnit = kRowTileTiles * Codec::kBytes;
  const int tile_bytes = rows * kRowTileBytes;
  const uint32_t limbs_at = shared_address(limbs_full);
#pragma unroll 1
  for (; count > 0; count -= kStageUnits, state.next()) {
    const uint8_t* tile = pipeline.at(state) + warp * Codec::kBytes;
    const uint8_t* limbs = pipeline.at(state) + Plan::kLimbsAt;
    pipeline.wait_full(state);
    barrier_wait(limbs_at + 8 * state.stage, state.phase);
    if (first) clock.input_ready(), first = false;
    if (count >= kStageUnits) {
#pragma unroll
      for (int k = 0; k < kStageUnits; ++k) {
        multiply_rows<Codec, Plan::kRows>(tile + k * kUnit, limbs + k * tile_bytes, rows, k % 2 == 1, lane, sums);
      }
    } else {
#pragma unroll
      for (int k = 0; k < kStageUnits - 1; ++k) {
        if (k < count)
          multiply_rows<Codec, Plan::kRows>(tile + k * kUnit, limbs + k * tile_bytes, rows, k % 2 == 1, lane, sums);
      }
    }
    pipeline.release(state);
  }
}

// The sums of a row tile in a lane: [x tile][matrix row g, g + 8 (times 16)].
template <int kXTiles>
struct RowTotals {
  float of[kXTiles][2];
  __device__ __forceinline__ RowTotals() {}
  __device__ __forceinline__ explicit RowTotals(const RowSums<kXTiles>& sums) {
#pragma unroll
    for (int i = 0; i < kXTiles * 2; ++i) {
      const float(&s)[4] = sums.of[i / 2][i % 2];
      of[i / 2][i % 2] = (s[0] + s[1]) + (s[2] + s[3]);
    }
  }
};

// Split-K partials, [CTA, x row, 128 rows], tagged.
struct RowPartials {
  uint64_t* values;
  uint32_t epoch;
  __device__ __forceinline__ RowPartials(const RowsWorkspace& w, const GemvInstruction& gemv, uint32_t epoch_)
      : values(w.partials + (gemv.second_partials ? rows_partials(gridDim.x) / 2 : 0)), epoch(epoch_) {}
  template <int kRows>
  __device__ __forceinline__ uint64_t* of(int block) const {
    return values + static_cast<int64_t>(block) * kRows * kRowTileRows;
  }
};

// The reduction warp: the sums of the partials of CTAs first .. last - 1, in this order, of all rows.
template <int kRows>
__device__ __forceinline__ void sum_row_partials(const RowPartials& partials, int first, int last, float* to,
                                                 int lane) {
  float sum[kRows][4] = {};
#pragma unroll 1
  for (; first < last; ++first) {
    TaggedPair pairs[2 * kRows];
    const uint64_t* from = partials.of<kRows>(first) + 4 * lane;
    wait_for_pairs([&](int i) { return from + i / 2 * kRowTileRows + i % 2 * 2; }, partials.epoch, pairs);
#pragma unroll
    for (int i = 0; i < 4 * kRows; ++i) sum[i / 4][i % 4] += pairs[i / 2].value(i % 2);
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    *reinterpret_cast<float4*>(to + row * kRowTileRows + 4 * lane) =
        make_float4(sum[row][0], sum[row][1], sum[row][2], sum[row][3]);
  }
}

template <int kRows>
__device__ __forceinline__ void run_rows_reduction_warp(const InstructionList& list, const MegakernelWorkspace& w,
                                                        Reduction reduction, uint32_t before, int lane) {
  for (int i = 0; i < list.count; ++i) {
    const Instruction& op = list.instructions[i];
    if (op.opcode != Opcode::kGemv) continue;
    const GemvRange range(op.gemv);
    if (!reduces_partials(op.gemv, range)) continue;
    int first = static_cast<int>(blockIdx.x);
    while (first > 0 && op.gemv.first_unit(first) > range.begin - range.col) --first;
    barrier_wait(reduction.requested, reduction.phase);
    reduction.phase ^= 1;
    sum_row_partials<kRows>(RowPartials(w.rows, op.gemv, Epochs::of_instruction(before, i)), first,
                            static_cast<int>(blockIdx.x), reduction.rows, lane);
    barrier_arrive(reduction.reduced);
  }
}

// Where the sums of a GEMV go.
template <int kRows>
struct RowsEpilogue {
  const RowsWorkspace& w;
  Reduction& reduction;
  RowPartials partials;
  LimbBuffer act;  // of GeGLU
  float* staged;   // [2, kRows, 64] in shared memory
  int rows;
  uint32_t epoch;
  int turn = 0;  // half of `staged`

  // GeGLU of a row tile is a tile of 64 columns of the next GEMV's input: through shared memory to limbs.
  __device__ __forceinline__ void write_geglu(const GemvInstruction& op, int row_tile, int warp, int lane,
                                              const RowTotals<kRows / 4>& totals) {
    float* values = staged + turn * kRows * kWeightTileCols;
    turn ^= 1;
    const int g = lane / 4, c = lane % 4;
#pragma unroll
    for (int t = 0; t < kRows / 4; ++t) {
      const float low = totals.of[t][0], high = totals.of[t][1] * 0.0625f;
      values[(4 * t + c) * kWeightTileCols + warp * 8 + g] = as_flagged(gelu_tanh(low) * high);
    }
    consumer_barrier();
    const int row = threadIdx.x / 8;
    if (warp >= kRows / 4) return;
    const Vector8 e(0);
    float x[8];
    const float* from = values + row * kWeightTileCols + e.column();
    split(*reinterpret_cast<const float4*>(from), *reinterpret_cast<const float4*>(from + 8), x);
    store_tile_limbs(act.row(row), row_tile, x, row < rows);
    __syncwarp();
    if (threadIdx.x % 8 == 0 && row < rows) act.set_flag(row_tile, row, epoch);
  }

  __device__ __forceinline__ void write(const GemvInstruction& op, int row_tile, int warp, int lane,
                                        const RowTotals<kRows / 4>& totals) {
    if (op.geglu) return write_geglu(op, row_tile, warp, lane, totals);
    const int first = row_tile * kRowTileRows + warp * kWeightTileRows + lane / 4;
    uint64_t* to = op.all_reduce ? w.sums : w.values;
    const int stride = op.all_reduce ? kResidualDimMax : kChannelValues;
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      const int x_row = i / 2 * 4 + lane % 4, row = first + i % 2 * 8;
      const float value = totals.of[i / 2][i % 2] * (i % 2 ? 0.0625f : 1.0f);
      if (x_row < rows && row < op.rows) store_tagged(to + x_row * stride + row, as_flagged(value), epoch);
    }
  }

  // This CTA's partial of a row tile, for the CTA that has its end.
  __device__ __forceinline__ void store_partial(int warp, int lane, const RowTotals<kRows / 4>& totals) const {
    uint64_t* to = partials.of<kRows>(blockIdx.x) + warp * kWeightTileRows + lane / 4;
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      store_tagged(to + (i / 2 * 4 + lane % 4) * kRowTileRows + i % 2 * 8, totals.of[i / 2][i % 2], partials.epoch);
    }
  }
};

// The consumer warps.
template <typename Codec, typename Plan>
__device__ __forceinline__ void run_rows_gemv(const GemvInstruction& op, RowsEpilogue<Plan::kRows>& epilogue,
                                              const Pipeline<Plan>& pipeline, const uint64_t* limbs_full,
                                              PipelineState<Plan>& state, InstructionClock& clock) {
  constexpr int kXTiles = Plan::kRows / 4;
  const GemvRange range(op);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tail = range.tail(op);
  const bool reduces = reduces_partials(op, range);
  RowTotals<kXTiles> own;
  bool first = true;  // stage
#pragma unroll 1
  for (int at = tail, end = range.end; end > range.begin;) {
    const int row_tile = op.row_tile_of(at), col = at - row_tile * op.col_tiles,
              count = min(end - at, op.col_tiles - col);
    if (reduces && at + count == end && (at < tail || tail == range.begin)) epilogue.reduction.request();
    RowSums<kXTiles> sums;
    multiply_rows_tiles<Codec>(pipeline, limbs_full, state, epilogue.rows, count, warp, lane, sums, clock, first);
    const RowTotals<kXTiles> totals(sums);
    if (col + count < op.col_tiles) {
      epilogue.store_partial(warp, lane, totals);
    } else if (col == 0) {
      epilogue.write(op, row_tile, warp, lane, totals);
    } else {
      own = totals;
    }
    at += count;
    if (at == end) end = at > tail ? tail : range.begin, at = range.begin;
  }
  if (!reduces) return;
  const float* rows = epilogue.reduction.wait() + warp * kWeightTileRows + lane / 4;
#pragma unroll
  for (int i = 0; i < kXTiles * 2; ++i) {
    own.of[i / 2][i % 2] += rows[(i / 2 * 4 + lane % 4) * kRowTileRows + i % 2 * 8];
  }
  epilogue.write(op, range.row_tile, warp, lane, own);
}
#endif

}  // namespace gemma4::cuda
