// A product of a decode step: the block's share of the packed weights, as they come through the ring, times one row.
#pragma once

#include "backend/cuda/step_input.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // bulk copies and their barriers
template <typename Codec>
__device__ __forceinline__ void copy_linear(const StepLinear& op, const Ring& ring, CopyState& state, int lane,
                                            uint64_t policy) {
  constexpr int kUnit = kPanelChunks * Codec::kBytes;
  const Units units(op);
  const int tail = units.tail(op);
#pragma unroll 1
  for (int from = tail, to = units.end;; to = from, from = units.begin) {
    for (Pieces at(Units(op, from, to), op.chunks); at.more(); at.next(), state.next()) {
      ring.wait_turn(state);
      if (lane == 0) {
        const uint32_t bytes = at.length * kUnit;
        barrier_expect(&ring.full[state.stage], bytes);
        bulk_load(ring.at(state), op.weights + (static_cast<int64_t>(at.panel) * op.chunks + at.col) * kUnit, bytes,
                  &ring.full[state.stage], policy);
      }
      __syncwarp();
    }
    if (from == units.begin) return;
  }
}

// A pair of chunks. The two digits of each of its four groups stand in columns of their own of the B operand, the rest
// of it is zero: lane 4 g + c holds the digits of group g / 2 and gives zero to the other groups' products. What
// follows a product is then done once for four groups, by lanes c. For row g whole bytes are taken, its codes plus 16
// times those of row g + 8, whose products come off afterwards: that spares every other mask.
template <typename Codec>
struct Pair {
  static constexpr int kUnit = kPanelChunks * Codec::kBytes;
  uint4 codes[2];
  uint2 digits;
  GroupFacts of;
  // `second`: the second chunk's distance from the first.
  __device__ __forceinline__ void load(const uint8_t* chunk, const uint8_t* digits_at, const uint8_t* facts, int lane,
                                       int second = kUnit) {
    codes[0] = words4(chunk + lane * 16), codes[1] = words4(chunk + second + lane * 16);
    digits = words2(digits_at + lane * 8);
    const int g = lane / 4, c = lane % 4;
    of.load(Codec{}, chunk + c / 2 * second, facts + c * 8, g, c % 2);
  }
  // d += the products of group `group`, 0 to 3.
  __device__ __forceinline__ void multiply(int group, int lane, int (&d)[4]) const {
    const uint4& w = codes[group / 2];
    const uint32_t x = group % 2 ? w.z : w.x, y = group % 2 ? w.w : w.y;
    const uint32_t a[4] = {x, x & 0xf0f0f0f0u, y, y & 0xf0f0f0f0u};
    const bool mine = lane / 8 == group;
    mma_bytes(d, a, mine ? digits.x : 0, mine ? digits.y : 0);
  }
  __device__ __forceinline__ void add(const int (&d)[4], float (&sum)[1][4]) const {
    const int both[4] = {d[0] - d[2], d[1] - d[3], d[2], d[3]};
    add_group(of, both, sum[0]);
  }
};

// Whole stages, whose columns follow each other. All that comes from shared memory is asked for first, and the pairs'
// products take turns: one after the other, a warp would wait for each of them.
template <typename Codec, int kStages>
__device__ __forceinline__ void multiply_stages(const uint8_t* const (&chunks)[kStages], const uint8_t* digits,
                                                const uint8_t* facts, int lane, float (&sum)[1][4]) {
  constexpr int kPairs = kStages * kStageChunks / 2;
  Pair<Codec> pairs[kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int k = 2 * i;
    pairs[i].load(chunks[k / kStageChunks] + k % kStageChunks * Pair<Codec>::kUnit, digits + k * kDigitBytes,
                  facts + k * kFactBytes, lane);
  }
  int d[kPairs][4] = {};
#pragma unroll
  for (int group = 0; group < 4; ++group) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) pairs[i].multiply(group, lane, d[i]);
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) pairs[i].add(d[i], sum);
}

// One or two chunks; of one, what stands for the second adds nothing.
template <typename Codec>
__device__ __forceinline__ void multiply_some(const uint8_t* chunk, const uint8_t* digits, const uint8_t* facts,
                                              int count, int lane, float (&sum)[1][4]) {
  Pair<Codec> pair;
  pair.load(chunk, digits, facts, lane, count > 1 ? Pair<Codec>::kUnit : 0);
  int d[4] = {};
#pragma unroll
  for (int group = 0; group < 4; ++group) {
    if (group / 2 < count) pair.multiply(group, lane, d);
  }
  if (lane % 4 / 2 < count) pair.add(d, sum);
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

// Adds the shares of the blocks before this one that hold units from `panel_begin` on, in their order.
__device__ __forceinline__ void take_parts(const StepLinear& op, const Sending& sending, int panel_begin, int warp,
                                           int lane, float (&sum)[1][4]) {
  constexpr int kAtOnce = 4;  // each answer takes most of a microsecond
  const int last = static_cast<int>(blockIdx.x);
  int first = last;
  while (first > 0 && op.first_unit(first) > panel_begin) --first;
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

// The products of `count` units of a panel, as their stages come. Stages that are there already are taken two at a
// time, and before they are computed the warp asks whether the next two are, to read the answer afterwards: to ask only
// then would take a third of the time.
template <typename Codec>
__device__ __forceinline__ void multiply_run(const Ring& ring, RingState& state, int count, int warp, int lane,
                                             const uint8_t* digits, const uint8_t* facts, float (&sum)[1][4]) {
  const auto chunk = [&](const RingState& at) { return ring.at(at) + warp * Codec::kBytes; };
  int stages = count / kStageChunks;  // whole ones
  const auto skip = [&](int done) {
    stages -= done;
    digits += done * kStageChunks * kDigitBytes, facts += done * kStageChunks * kFactBytes;
  };
  bool ready = false;  // the next two are there
  while (stages > 0) {
    RingState second = state;
    second.next();
    if (!ready) {
      ring.wait_full(state);
      if (stages > 1) ready = warp_all(ring.peek(second));
    }
    if (ready) {
      RingState third = second, fourth;
      third.next();
      fourth = third, fourth.next();
      const uint32_t next = ring.peek(third), last = ring.peek(fourth);
      multiply_stages<Codec>({chunk(state), chunk(second)}, digits, facts, lane, sum);
      ring.release(state), ring.release(second);
      state = third, skip(2);
      ready = warp_all(next & last & static_cast<uint32_t>(stages > 1));
    } else {
      multiply_stages<Codec>({chunk(state)}, digits, facts, lane, sum);
      ring.release(state);
      state = second, skip(1);
    }
  }
  const int rest = count % kStageChunks;
  if (rest == 0) return;
  ring.wait_full(state);
#pragma unroll 1
  for (int k = 0; k < rest; k += 2) {
    multiply_some<Codec>(chunk(state) + k * Pair<Codec>::kUnit, digits + k * kDigitBytes, facts + k * kFactBytes,
                         min(2, rest - k), lane, sum);
  }
  ring.release(state), state.next();
}

template <typename Codec>
__device__ __forceinline__ void run_linear(const StepLinear& op, const Units& units, const Sending& sending,
                                           const Ring& ring, RingState& state, const uint8_t* input) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool columns = by_column(op);
  float shared_sum[1][4] = {};
  int shared_panel = -1;  // a panel that began in an earlier block: summed last, when that block is done
  const int tail = units.tail(op);
#pragma unroll 1
  for (int at = tail, end = units.end; end > units.begin;) {
    const int panel = op.panel_of(at), col = at - panel * op.chunks, count = min(end - at, op.chunks - col);
    const int place = columns ? col : at - units.begin;
    float sum[1][4] = {};
    multiply_run<Codec>(ring, state, count, warp, lane, input + place * kDigitBytes,
                        input + kDigitsBytes + place * kFactBytes, sum);
    join_groups(sum);
    if (col + count < op.chunks) {
      give_part(sending, warp, lane, sum);
    } else if (col == 0) {
      write_panel(op, sending, panel, warp, lane, sum);
    } else {
      shared_panel = panel;
      shared_sum[0][0] = sum[0][0], shared_sum[0][2] = sum[0][2];
    }
    at += count;
    if (at == end) end = at > tail ? tail : units.begin, at = units.begin;
  }
  if (shared_panel >= 0) {
    take_parts(op, sending, shared_panel * op.chunks, warp, lane, shared_sum);
    write_panel(op, sending, shared_panel, warp, lane, shared_sum);
  }
}
#endif

}  // namespace gemma4::cuda
