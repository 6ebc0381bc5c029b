// A product of a decode step: the block's share of the packed weights, as they come through the ring, times one row.
#pragma once

#include "backend/cuda/megakernel/int8_input.cuh"
#include "backend/cuda/megakernel/split_k_reduce.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // bulk copies and their barriers
template <typename Codec>
__device__ __forceinline__ void copy_linear(const StepLinear& op, const Ring& ring, CopyState& state, int lane,
                                            uint64_t policy) {
  constexpr int kUnit = kRowTileTiles * Codec::kBytes;
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

// sum += a * b where `yes`, without a branch.
__device__ __forceinline__ void add_where(bool yes, float a, float b, float& sum) {
  asm("{\n"
      ".reg .pred yes;\n"
      "setp.ne.u32 yes, %3, 0;\n"
      "@yes fma.rn.f32 %0, %1, %2, %0;\n"
      "}\n"
      : "+f"(sum)
      : "f"(a), "f"(b), "r"(static_cast<uint32_t>(yes)));
}

// A pair of chunks. The two digits of each of its four groups stand in columns of their own of the B operand, the rest
// of it is zero: lane 4 g + c holds the digits of group g / 2 and gives zero to the other groups' products. What
// follows a product is then done once for four groups, by lanes c. For row g whole bytes are taken, its codes plus 16
// times those of row g + 8, whose products come off afterwards: that spares every other mask.
template <typename Codec>
struct Pair {
  static constexpr int kUnit = kRowTileTiles * Codec::kBytes;
  uint4 codes[2];
  uint2 digits;
  GroupScales of;
  __device__ __forceinline__ void load(const uint8_t* chunk, const uint8_t* digits_at, const uint8_t* facts, int lane) {
    codes[0] = words4(chunk + lane * 16), codes[1] = words4(chunk + kUnit + lane * 16);
    digits = words2(digits_at + lane * 8);
    const int g = lane / 4, c = lane % 4;
    of.load(Codec{}, chunk + c / 2 * kUnit, facts + c * 8, g, c % 2);
  }
  // d += the products of group `group`, 0 to 3.
  __device__ __forceinline__ void multiply(int group, int lane, int (&d)[4]) const {
    const uint4& w = codes[group / 2];
    const uint32_t x = group % 2 ? w.z : w.x, y = group % 2 ? w.w : w.y;
    const uint32_t a[4] = {x, x & 0xf0f0f0f0u, y, y & 0xf0f0f0f0u};
    const bool mine = lane / 8 == group;
    mma_u8s8(d, a, mine ? digits.x : 0, mine ? digits.y : 0);
  }
  __device__ __forceinline__ void add(const int (&d)[4], float (&sum)[1][4], bool real) const {
    const int both[4] = {d[0] - d[2], d[1] - d[3], d[2], d[3]};
    const GroupTerms terms(of, both);
#pragma unroll
    for (int i = 0; i < 2; ++i) add_where(real, terms.factor[i], static_cast<float>(terms.value[i]), sum[0][2 * i]);
  }
};

// Stages, whose columns follow each other; of the last, what lies beyond `count` chunks in all is not this product's
// and adds nothing. All that comes from shared memory is asked for first, and the pairs' products take turns: one after
// the other, a warp would wait for each of them.
template <typename Codec, int kStages>
__device__ __forceinline__ void multiply_stages(const uint8_t* const (&chunks)[kStages], const uint8_t* digits,
                                                const uint8_t* facts, int count, int lane, float (&sum)[1][4]) {
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
  const int mine = count - lane % 4 / 2;  // the lane has a group of the first chunk of a pair, or of the second
#pragma unroll
  for (int i = 0; i < kPairs; ++i) pairs[i].add(d[i], sum, 2 * i < mine);
}

// The lanes of a row hold sums of different groups; afterwards each has the whole.
__device__ __forceinline__ void join_groups(float (&sum)[1][4]) {
#pragma unroll
  for (int e = 0; e < 4; e += 2) {
    sum[0][e] += __shfl_xor_sync(0xffffffffu, sum[0][e], 1);
    sum[0][e] += __shfl_xor_sync(0xffffffffu, sum[0][e], 2);
  }
}

// What a product needs to know besides: how its results are sent, and how parts of a panel are added up.
struct Sending {
  const Sums& sums;
  Adding& adding;
  Parts parts;
  uint32_t number;  // of the results' words
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
  const int place = panel * kRowTileRows + warp * kWeightTileRows, g = lane / 4, e = lane % 4;
  const float low = sum[0][0], high = sum[0][2] * 0.0625f;
  if (op.sum) {  // rows are a multiple of 16 then: all of them or none
    if (place < op.rows) sending.sums.send(op.sum, place, e % 2 ? high : low, lane);
    return;
  }
  const int half = op.rows / 2, pair = place / 2 + g;  // of a paired matrix: the row of each part
  if (op.geglu) {
    if (e != 0 || pair >= half) return;
    const float value = gelu_tanh(low) * high;
    if (op.to.at) {
      put_word(op.to.at + word_place(pair), value, sending.number);
    } else {
      write_value(op, sending, pair, value);
    }
    return;
  }
  const int row = place + g + 8 * e;
  if (e < 2 && row < op.rows) write_value(op, sending, row, e ? high : low);
}

// This block's part of a panel, to the block that has the panel's end.
__device__ __forceinline__ void give_part(const Parts& parts, int warp, int lane, const float (&sum)[1][4]) {
  const int e = lane % 4;
  if (e < 2) parts.give(warp * kWeightTileRows + lane / 4 + 8 * e, e ? sum[0][2] : sum[0][0]);
}

// The products of `count` units of a panel, as their stages come. Stages that are there already are taken two at a
// time, and before they are computed the warp asks whether the next two are, to read the answer afterwards: to ask only
// then would take a third of the time. `ready`: that they are.
template <typename Codec>
__device__ __forceinline__ void multiply_run(const Ring& ring, RingState& state, bool& ready, int count, int warp,
                                             int lane, const uint8_t* digits, const uint8_t* facts,
                                             float (&sum)[1][4]) {
  const auto chunk = [&](const RingState& at) { return ring.at(at) + warp * Codec::kBytes; };
#pragma unroll 1
  while (count > 0) {
    RingState second = state, third;
    second.next();
    third = second, third.next();
    if (!ready) {
      ring.wait_full(state);
      ready = warp_all(ring.peek(second));
    }
    int done = kStageChunks;
    if (ready && count > kStageChunks) {
      RingState fourth = third;
      fourth.next();
      const uint32_t next = ring.peek(third), last = ring.peek(fourth);
      multiply_stages<Codec>({chunk(state), chunk(second)}, digits, facts, count, lane, sum);
      ring.release(state), ring.release(second);
      state = third, done += kStageChunks;
      ready = warp_all(next & last);
    } else {
      const uint32_t next = ring.peek(second), last = ring.peek(third);
      multiply_stages<Codec>({chunk(state)}, digits, facts, count, lane, sum);
      ring.release(state);
      state = second;
      ready = warp_all(next & last);
    }
    count -= done, digits += done * kDigitBytes, facts += done * kFactBytes;
  }
}

template <typename Codec>
__device__ __forceinline__ void run_linear(const StepLinear& op, const Units& units, const Sending& sending,
                                           const Ring& ring, RingState& state, const uint8_t* input) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, tail = units.tail(op);
  const bool takes = takes_parts(op, units);  // for a panel that began in an earlier block; written last
  float taking[1][4] = {};
  bool ready = false;
#pragma unroll 1
  for (int at = tail, end = units.end; end > units.begin;) {
    const int panel = op.panel_of(at), col = at - panel * op.chunks, count = min(end - at, op.chunks - col);
    const int place = op.whole ? col : at - units.begin;
    if (takes && at + count == end && (at < tail || tail == units.begin)) sending.adding.want();
    float sum[1][4] = {};
    multiply_run<Codec>(ring, state, ready, count, warp, lane, input + place * kDigitBytes,
                        input + kDigitsBytes + place * kFactBytes, sum);
    join_groups(sum);
    if (col + count < op.chunks) {
      give_part(sending.parts, warp, lane, sum);
    } else if (col == 0) {
      write_panel(op, sending, panel, warp, lane, sum);
    } else {
      taking[0][0] = sum[0][0], taking[0][2] = sum[0][2];
    }
    at += count;
    if (at == end) end = at > tail ? tail : units.begin, at = units.begin;
  }
  if (!takes) return;
  const float* rows = sending.adding.take() + warp * kWeightTileRows + lane / 4;
  taking[0][0] += rows[0], taking[0][2] += rows[8];
  write_panel(op, sending, units.panel, warp, lane, taking);
}
#endif

}  // namespace gemma4::cuda
