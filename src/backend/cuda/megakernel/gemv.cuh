// The GEMVs of the decode megakernel: a CTA's range of the packed weights, as they arrive in the pipeline, times one
// row of int8 limbs on the integer tensor cores.
#pragma once

#include "backend/cuda/megakernel/int8_input.cuh"
#include "backend/cuda/megakernel/rank_all_reduce.cuh"
#include "backend/cuda/megakernel/split_k_reduce.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // mbarriers
// The producer warp: the weights of this CTA, in the order in which run_gemv() multiplies them.
template <typename Codec, typename Plan>
__device__ __forceinline__ void produce_weights(const GemvInstruction& op, const Pipeline<Plan>& pipeline,
                                                ProducerState<Plan>& state, int thread, uint64_t policy) {
  constexpr int kUnit = kRowTileTiles * Codec::kBytes;
  const GemvRange range(op);
  const int tail = range.tail(op);
#pragma unroll 1
  for (int first = tail, end = range.end;; end = first, first = range.begin) {
    for (StageSlices at(GemvRange(op, first, end), op.col_tiles); at.more(); at.next(), state.next()) {
      pipeline.acquire(state);
      const uint8_t* from = op.weights + (static_cast<int64_t>(at.row_tile) * op.col_tiles + at.col) * kUnit;
      const uint32_t bytes = at.length * kUnit;
      if (!pipeline.bulk_copies) {
        load_by_threads<Plan::kProducers>(pipeline.at(state), from, bytes, thread, policy);
        barrier_arrive_after_copies(&pipeline.full[state.stage]);
      } else if (thread == 0) {
        barrier_expect(&pipeline.full[state.stage], bytes);
        bulk_load(pipeline.at(state), from, bytes, &pipeline.full[state.stage], policy);
      }
      __syncwarp();
    }
    if (first == range.begin) return;
  }
}

// sum += a * b where `yes`, without a branch.
__device__ __forceinline__ void add_if(bool yes, float a, float b, float& sum) {
  asm("{\n"
      ".reg .pred yes;\n"
      "setp.ne.u32 yes, %3, 0;\n"
      "@yes fma.rn.f32 %0, %1, %2, %0;\n"
      "}\n"
      : "+f"(sum)
      : "f"(a), "f"(b), "r"(static_cast<uint32_t>(yes)));
}

// A pair of weight tiles, which have four groups. Each group's two limbs are columns of their own in the B operand, and
// the rest of B is zero: lane 4 g + c holds the limbs of group g / 2 and gives zero to the products of other groups. So
// the scaling after a product is done once for four groups, by lanes c. For row g the operand is whole bytes, the codes
// of row g plus 16 times those of row g + 8, whose products are subtracted afterwards. That saves every other mask.
template <typename Codec>
struct TilePair {
  static constexpr int kUnit = kRowTileTiles * Codec::kBytes;
  uint4 codes[2];
  uint2 limbs;
  GroupScales of;
  __device__ __forceinline__ void load(const uint8_t* tile, const uint8_t* limbs_at, const uint8_t* scales, int lane) {
    codes[0] = words4(tile + lane * 16), codes[1] = words4(tile + kUnit + lane * 16);
    limbs = words2(limbs_at + lane * 8);
    const int g = lane / 4, c = lane % 4;
    of.load(Codec{}, tile + c / 2 * kUnit, scales + c * 8, g, c % 2);
  }
  // d += the products of group `group`, 0 to 3.
  __device__ __forceinline__ void multiply(int group, int lane, int (&d)[4]) const {
    const uint4& w = codes[group / 2];
    const uint32_t x = group % 2 ? w.z : w.x, y = group % 2 ? w.w : w.y;
    const uint32_t a[4] = {x, x & 0xf0f0f0f0u, y, y & 0xf0f0f0f0u};
    const bool mine = lane / 8 == group;
    mma_u8s8(d, a, mine ? limbs.x : 0, mine ? limbs.y : 0);
  }
  __device__ __forceinline__ void add(const int (&d)[4], float (&sum)[1][4], bool real) const {
    const int both[4] = {d[0] - d[2], d[1] - d[3], d[2], d[3]};
    const GroupTerms terms(of, both);
#pragma unroll
    for (int i = 0; i < 2; ++i) add_if(real, terms.factor[i], static_cast<float>(terms.value[i]), sum[0][2 * i]);
  }
};

// Multiplies stages whose columns follow each other. What the last holds beyond `count` tiles in all is left over from
// other work and adds nothing. All loads from shared memory come first, and the products of the pairs are interleaved,
// so that a warp does not wait for each of them.
template <typename Codec, int kStages>
__device__ __forceinline__ void multiply_stages(const uint8_t* const (&tiles)[kStages], const uint8_t* limbs,
                                                const uint8_t* scales, int count, int lane, float (&sum)[1][4]) {
  constexpr int kPairs = kStages * kStageUnits / 2;
  TilePair<Codec> pairs[kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int k = 2 * i;
    pairs[i].load(tiles[k / kStageUnits] + k % kStageUnits * TilePair<Codec>::kUnit, limbs + k * kLimbBytes,
                  scales + k * kGroupScaleBytes, lane);
  }
  int d[kPairs][4] = {};
#pragma unroll
  for (int group = 0; group < 4; ++group) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) pairs[i].multiply(group, lane, d[i]);
  }
  const int mine = count - lane % 4 / 2;  // the lane has a group of the first or second tile of a pair
#pragma unroll
  for (int i = 0; i < kPairs; ++i) pairs[i].add(d[i], sum, 2 * i < mine);
}

// The lanes of a row hold sums of different groups; afterwards each holds the sum of all.
__device__ __forceinline__ void reduce_lanes(float (&sum)[1][4]) {
#pragma unroll
  for (int e = 0; e < 4; e += 2) {
    sum[0][e] += __shfl_xor_sync(0xffffffffu, sum[0][e], 1);
    sum[0][e] += __shfl_xor_sync(0xffffffffu, sum[0][e], 2);
  }
}

// Where the sums of a GEMV go.
struct GemvEpilogue {
  const RankAllReduce& ranks;
  Reduction& reduction;
  Partials partials;
  uint32_t epoch;  // of the channel that the results go to
};

__device__ __forceinline__ void write_value(const GemvInstruction& op, const GemvEpilogue& epilogue, int row,
                                            float value) {
  if (op.to.values) {
    store_flagged(op.to.values + row, value, epilogue.epoch);
  } else if (op.out_f32) {
    static_cast<float*>(op.out)[row] = value;
  } else {
    static_cast<__nv_bfloat16*>(op.out)[row] = __float2bfloat16_rn(value);
  }
}

// The sums of a row tile: of the warp's 16 rows, lane 4 g + c holds row g and 16 times row g + 8.
__device__ __forceinline__ void write_row_tile(const GemvInstruction& op, const GemvEpilogue& epilogue, int row_tile,
                                               int warp, int lane, const float (&sum)[1][4]) {
  const int first = row_tile * kRowTileRows + warp * kWeightTileRows, g = lane / 4, e = lane % 4;
  const float low = sum[0][0], high = sum[0][2] * 0.0625f;
  if (op.all_reduce) {  // op.rows is a multiple of 16 then, so the warp has all of its rows or none
    if (first < op.rows) epilogue.ranks.send(op.all_reduce, first, e % 2 ? high : low, lane);
    return;
  }
  const int half = op.rows / 2, pair = first / 2 + g;  // of a paired matrix: the row in gate and in up
  if (op.geglu) {
    if (e != 0 || pair >= half) return;
    const float value = gelu_tanh(low) * high;
    if (op.to.values) {
      store_flagged(op.to.values + flagged_offset(pair), value, epilogue.epoch);
    } else {
      write_value(op, epilogue, pair, value);
    }
    return;
  }
  const int row = first + g + 8 * e;
  if (e < 2 && row < op.rows) write_value(op, epilogue, row, e ? high : low);
}

// This CTA's partial of a row tile, for the CTA that has the end of the row tile.
__device__ __forceinline__ void store_partial(const Partials& partials, int warp, int lane, const float (&sum)[1][4]) {
  const int e = lane % 4;
  if (e < 2) partials.store(warp * kWeightTileRows + lane / 4 + 8 * e, e ? sum[0][2] : sum[0][0]);
}

// Multiplies `count` work units of a row tile as their stages arrive, two stages at a time where both are full already.
// Before it multiplies, the warp peeks at the next two stages, and reads the answer afterwards: peeking only afterwards
// would take a third of the time. `ready`: the next two stages are full.
template <typename Codec, typename Plan>
__device__ __forceinline__ void multiply_tiles(const Pipeline<Plan>& pipeline, PipelineState<Plan>& state, bool& ready,
                                               int count, int warp, int lane, const uint8_t* limbs,
                                               const uint8_t* scales, float (&sum)[1][4]) {
  const auto tile = [&](const PipelineState<Plan>& at) { return pipeline.at(at) + warp * Codec::kBytes; };
#pragma unroll 1
  while (count > 0) {
    PipelineState<Plan> second = state, third;
    second.next();
    third = second, third.next();
    if (!ready) {
      pipeline.wait_full(state);
      ready = warp_all(pipeline.peek(second));
    }
    int done = kStageUnits;
    if (ready && count > kStageUnits) {
      PipelineState<Plan> fourth = third;
      fourth.next();
      const uint32_t next = pipeline.peek(third), last = pipeline.peek(fourth);
      multiply_stages<Codec>({tile(state), tile(second)}, limbs, scales, count, lane, sum);
      pipeline.release(state), pipeline.release(second);
      state = third, done += kStageUnits;
      ready = warp_all(next & last);
    } else {
      const uint32_t next = pipeline.peek(second), last = pipeline.peek(third);
      multiply_stages<Codec>({tile(state)}, limbs, scales, count, lane, sum);
      pipeline.release(state);
      state = second;
      ready = warp_all(next & last);
    }
    count -= done, limbs += done * kLimbBytes, scales += done * kGroupScaleBytes;
  }
}

// The consumer warps.
template <typename Codec, typename Plan>
__device__ __forceinline__ void run_gemv(const GemvInstruction& op, const GemvRange& range,
                                         const GemvEpilogue& epilogue, const Pipeline<Plan>& pipeline,
                                         PipelineState<Plan>& state, const GemvInput& input) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tail = range.tail(op);
  const bool reduces = reduces_partials(op, range);  // of the range's first row tile, which is written last
  float own[1][4] = {};                              // this CTA's part of that row tile
  bool ready = false;
#pragma unroll 1
  for (int at = tail, end = range.end; end > range.begin;) {
    const int row_tile = op.row_tile_of(at), col = at - row_tile * op.col_tiles,
              count = min(end - at, op.col_tiles - col);
    const int offset = op.whole ? col : at - range.begin;
    if (reduces && at + count == end && (at < tail || tail == range.begin)) epilogue.reduction.request();
    float sum[1][4] = {};
    multiply_tiles<Codec>(pipeline, state, ready, count, warp, lane, input.limbs + offset * kLimbBytes,
                          input.scales + offset * kGroupScaleBytes, sum);
    reduce_lanes(sum);
    if (col + count < op.col_tiles) {
      store_partial(epilogue.partials, warp, lane, sum);
    } else if (col == 0) {
      write_row_tile(op, epilogue, row_tile, warp, lane, sum);
    } else {
      own[0][0] = sum[0][0], own[0][2] = sum[0][2];
    }
    at += count;
    if (at == end) end = at > tail ? tail : range.begin, at = range.begin;
  }
  if (!reduces) return;
  const float* rows = epilogue.reduction.wait() + warp * kWeightTileRows + lane / 4;
  own[0][0] += rows[0], own[0][2] += rows[8];
  write_row_tile(op, epilogue, range.row_tile, warp, lane, own);
}
#endif

}  // namespace gemma4::cuda
