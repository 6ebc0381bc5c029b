// A product of a decode step: the block's share of the packed weights, as they come through the ring, times one row.
#pragma once

#include "backend/cuda/step_input.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // bulk copies and their barriers
template <typename Codec>
__device__ __forceinline__ void copy_linear(const StepLinear& op, const Ring& ring, CopyState& state, int lane,
                                            uint64_t policy) {
  constexpr int kUnit = kPanelChunks * Codec::kBytes;
  for (Pieces at(range_of(op), op.chunks); at.more(); at.next(), state.next()) {
    ring.wait_turn(state);
    if (lane == 0) {
      const uint32_t bytes = at.length * kUnit;
      barrier_expect(&ring.full[state.stage], bytes);
      bulk_load(ring.at(state), op.weights + (static_cast<int64_t>(at.panel) * op.chunks + at.col) * kUnit, bytes,
                &ring.full[state.stage], policy);
    }
    __syncwarp();
  }
}

// `count` (1 or 2) chunks. The two digits of each of four groups (two chunks) stand in columns of their own of the B
// operand, the rest of it is zero: lane 4 g + c holds the digits of group g / 2 and gives zero to the other groups'
// products. What follows a product is then done once for four groups, by lanes c. Row g takes whole bytes, its codes
// and 16 times those of row g + 8, whose products are then taken off: that spares every other mask.
template <typename Codec>
__device__ __forceinline__ void multiply_pair(const uint8_t* chunk, const uint8_t* digits, const uint8_t* facts,
                                              int count, int lane, float (&sum)[1][4]) {
  constexpr int kUnit = kPanelChunks * Codec::kBytes;
  const int g = lane / 4, c = lane % 4, mine = lane / 8;
  const uint2 b = words2(digits + lane * 8);
  int d[4] = {};
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (k == count) break;
    const uint4 w = words4(chunk + k * kUnit + lane * 16);
    const uint32_t a0[4] = {w.x, w.x & 0xf0f0f0f0u, w.y, w.y & 0xf0f0f0f0u};
    const uint32_t a1[4] = {w.z, w.z & 0xf0f0f0f0u, w.w, w.w & 0xf0f0f0f0u};
    const bool first = mine == 2 * k, second = mine == 2 * k + 1;
    mma_bytes(d, a0, first ? b.x : 0, first ? b.y : 0);
    mma_bytes(d, a1, second ? b.x : 0, second ? b.y : 0);
  }
  if (c / 2 >= count) return;
  const int both[4] = {d[0] - d[2], d[1] - d[3], d[2], d[3]};
  add_group(Codec{}, chunk + c / 2 * kUnit, facts + c * 8, g, c % 2, both, sum[0]);
}

// Whole stages, whose columns follow each other.
template <typename Codec, int kStages>
__device__ __forceinline__ void multiply_stages(const uint8_t* const (&chunks)[kStages], const uint8_t* digits,
                                                const uint8_t* facts, int lane, float (&sum)[1][4]) {
  constexpr int kUnit = kPanelChunks * Codec::kBytes;
#pragma unroll
  for (int k = 0; k < kStages * kStageChunks; k += 2) {
    multiply_pair<Codec>(chunks[k / kStageChunks] + k % kStageChunks * kUnit, digits + k * kDigitBytes,
                         facts + k * kFactBytes, 2, lane, sum);
  }
}

// The lanes of a row hold sums of different groups; afterwards each has the whole.
__device__ __forceinline__ void join_groups(float (&sum)[1][4]) {
#pragma unroll
  for (int e = 0; e < 4; e += 2) {
    sum[0][e] += __shfl_xor_sync(0xffffffffu, sum[0][e], 1);
    sum[0][e] += __shfl_xor_sync(0xffffffffu, sum[0][e], 2);
  }
}

// What a product needs to know besides: how its results are sent, and what it tells other blocks in `parts`.
struct Sending {
  const Sums& sums;
  uint64_t* parts;  // [blocks, 8 warps, 32 lanes, 2]
  uint32_t number;  // of the results' words
  uint32_t op;      // of the parts
};

__device__ __forceinline__ void write_value(const StepLinear& op, const Sending& sending, int row, float value) {
  if (op.to.at) {
    put_word(op.to.at + row, value, sending.number);
  } else if (op.out_f32) {
    static_cast<float*>(op.out)[row] = value;
  } else {
    static_cast<__nv_bfloat16*>(op.out)[row] = __float2bfloat16_rn(value);
  }
}

// One panel's sums: lane 4 g + c holds rows g and, times 16, g + 8 of the warp's 16.
__device__ __forceinline__ void write_panel(const StepLinear& op, const Sending& sending, int panel, int warp, int lane,
                                            const float (&sum)[1][4]) {
  const int place = panel * kPanelRows + warp * kChunkRows, g = lane / 4, e = lane % 4;
  const float low = sum[0][0], high = sum[0][2] * 0.0625f;
  if (op.sum) {  // rows are a multiple of 16 then: all of them or none
    if (place < op.rows) sending.sums.send(op.sum, place, e % 2 ? high : low, lane);
    return;
  }
  const int half = op.rows / 2, pair = place / 2 + g;  // of a paired matrix: the row of each part
  if (op.geglu) {
    if (e == 0 && pair < half) write_value(op, sending, pair, gelu_tanh(low) * high);
    return;
  }
  const int row = place + g + 8 * e;
  if (e < 2 && row < op.rows) write_value(op, sending, row, e ? high : low);
}

// Hands this block's share of a panel to the block that has the panel's end: each value with the operation's number
// above it.
__device__ __forceinline__ uint64_t* part_of(const Sending& sending, int block, int warp, int lane) {
  return sending.parts + ((static_cast<int64_t>(block) * kStreamWarps + warp) * 32 + lane) * 2;
}
__device__ __forceinline__ void give_part(const Sending& sending, int warp, int lane, const float (&sum)[1][4]) {
  const auto word = [&](float value) { return static_cast<uint64_t>(sending.op) << 32 | __float_as_uint(value); };
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(part_of(sending, blockIdx.x, warp, lane)),
               "l"(word(sum[0][0])), "l"(word(sum[0][2]))
               : "memory");
}

// Adds the shares of those of `blocks` blocks before this one that hold units from `panel_begin` on, in their order.
__device__ __forceinline__ void take_parts(const StepLinear& op, const Sending& sending, int blocks, int panel_begin,
                                           int warp, int lane, float (&sum)[1][4]) {
  constexpr int kAtOnce = 4;  // each answer takes most of a microsecond
  const uint32_t units = static_cast<uint32_t>(op.panels) * op.chunks;
  const int last = static_cast<int>(blockIdx.x);
  int first = last;
  while (first > 0 && Range(first - 1, blocks, units).end > panel_begin) --first;
  const auto ask = [&](int block, uint64_t(&words)[2]) {
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(words[0]), "=l"(words[1])
                 : "l"(part_of(sending, block, warp, lane))
                 : "memory");
  };
  const auto missing = [&](const uint64_t(&words)[2]) {
    return static_cast<uint32_t>(words[0] >> 32) != sending.op || static_cast<uint32_t>(words[1] >> 32) != sending.op;
  };
  for (int block = first; block < last; block += kAtOnce) {
    uint64_t words[kAtOnce][2];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (block + i < last) ask(block + i, words[i]);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (block + i >= last) continue;
      while (missing(words[i])) ask(block + i, words[i]);
      sum[0][0] += __uint_as_float(static_cast<uint32_t>(words[i][0]));
      sum[0][2] += __uint_as_float(static_cast<uint32_t>(words[i][1]));
    }
  }
}

template <typename Codec>
__device__ __forceinline__ void run_linear(const StepLinear& op, const Sending& sending, const Ring& ring,
                                           RingState& state, const uint8_t* input) {
  constexpr int kUnit = kPanelChunks * Codec::kBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Range range = range_of(op);
  float sum[1][4] = {}, shared_sum[1][4] = {};
  int shared_panel = -1;  // a panel that began in an earlier block: summed last, when that block is done
  bool whole = range.begin % op.chunks == 0;
  const bool columns = by_column(op);
  int place = columns ? range.begin % op.chunks : 0;
  for (Pieces at(range, op.chunks); at.more(); at.next(), state.next()) {
    const uint8_t* chunk = ring.at(state) + warp * Codec::kBytes;
    const uint8_t *digits = input + place * kDigitBytes, *facts = input + kDigitsBytes + place * kFactBytes;
    ring.wait_full(state);
    if (at.length == kStageChunks) {
      RingState second = state;
      second.next();
      if (at.two_whole() && ring.is_full(second)) {  // together: each has gaps that the other fills
        multiply_stages<Codec>({chunk, ring.at(second) + warp * Codec::kBytes}, digits, facts, lane, sum);
        ring.release(state);
        at.next(), state.next(), place += kStageChunks;
      } else {
        multiply_stages<Codec>({chunk}, digits, facts, lane, sum);
      }
    } else {
#pragma unroll 1
      for (int k = 0; k < at.length; k += 2) {
        multiply_pair<Codec>(chunk + k * kUnit, digits + k * kDigitBytes, facts + k * kFactBytes, min(2, at.length - k),
                             lane, sum);
      }
    }
    ring.release(state);
    place += at.length;
    if (!at.ends_panel()) continue;
    if (columns) place = 0;
    join_groups(sum);
    if (whole) {
      write_panel(op, sending, at.panel, warp, lane, sum);
    } else {
      shared_panel = at.panel;
      shared_sum[0][0] = sum[0][0], shared_sum[0][2] = sum[0][2];
    }
    whole = true;
    sum[0][0] = sum[0][2] = 0;
  }
  if (range.end % op.chunks != 0 && range.begin < range.end) {
    join_groups(sum);
    give_part(sending, warp, lane, sum);
  }
  if (shared_panel >= 0) {
    take_parts(op, sending, working_blocks(op), shared_panel * op.chunks, warp, lane, shared_sum);
    write_panel(op, sending, shared_panel, warp, lane, shared_sum);
  }
}
#endif

}  // namespace gemma4::cuda
