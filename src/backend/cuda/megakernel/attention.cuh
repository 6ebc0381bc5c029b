// heads() and attend() of a decode step: flash decoding over keys that come through the ring, 16 to a stage, before the
// queries are there. A block has one KV head and a share of its keys; it norms and turns its queries for itself. The
// newest key and value are not in the cache yet: the block with the last tile makes them, for the cache and for itself.
#pragma once

#include "backend/cuda/attention/kv_cache.cuh"
#include "backend/cuda/device/activation.cuh"
#include "backend/cuda/device/cp_async.cuh"
#include "backend/cuda/device/element.cuh"
#include "backend/cuda/device/mma.cuh"
#include "backend/cuda/device/reduce.cuh"
#include "backend/cuda/megakernel/flagged_memory.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // bulk copies and their barriers
// kRotated 0: keys and values lie apart. Else one row of kDim + 2 * kRotated serves as both (KvCacheView).
template <int kDim_, int kRotated_>
struct StepHead {
  static constexpr int kDim = kDim_, kRotated = kRotated_, kHalf = kDim / 2;
  static constexpr int kElements = kDim + 2 * kRotated;  // of a cached row
  static constexpr int kRow = kElements + kRowPad;
  static constexpr int kPerLane = kHalf / 32;                 // pairs of a head that a lane turns
  static constexpr int kSteps = kDim / 16 / kConsumerWarps;   // of depth, of a warp: those where the query is not zero
  static constexpr int kColumns = kDim / kConsumerWarps / 8;  // column tiles of a warp
  static_assert((kRotated ? 1 : 2) * kTileKeys * kRow * 2 <= kStageBytes);

  // Where the warp's step `i` begins in a row of keys. Compressed: V's elements that stand for K's, then those kept.
  static __device__ __forceinline__ int depth(int warp, int i) {
    const int index = warp * kSteps + i;
    if constexpr (kRotated == 0) return index * 16;
    constexpr int kEach = (kHalf - kRotated) / 16;
    if (index < kEach) return kRotated + index * 16;
    if (index < 2 * kEach) return kHalf + kRotated + (index - kEach) * 16;
    return kDim + (index - 2 * kEach) * 16;
  }
};

constexpr int kQueryRows = 8;  // query heads of a KV head, at most

// Attention's scratch, in bytes from its beginning.
template <typename H>
struct AttendLayout {
  static constexpr int kQuery = 0;                                                        // [8, kRow]
  static constexpr int kScores = kQuery + kQueryRows * H::kRow * 2;                       // float [8 warps, 8, 16]
  static constexpr int kWeights = kScores + kConsumerWarps * kQueryRows * kTileKeys * 4;  // [8, 16 + 8]
  static constexpr int kKeep = kWeights + kQueryRows * (kTileKeys + kRowPad) * 2;         // float [8]
  static constexpr int kTop = kKeep + 32, kTotal = kTop + 32;                             // float [8]
  static constexpr int kFresh = kTotal + 32;  // the newest row: as in a tile
  static constexpr int kEnd = kFresh + (H::kRotated ? 1 : 2) * H::kRow * 2;
  static_assert(kEnd <= kScratchBytes && kFresh % 16 == 0);
};

template <typename H>
__device__ __forceinline__ void copy_tiles(const StepAttend& op, SeenShare& seen, const Ring& ring, CopyState& state,
                                           int lane) {
  const KeyShare& share = seen.of(op);
  constexpr int kRowBytes = H::kElements * 2, kRows = (H::kRotated ? 1 : 2) * kTileKeys;
  for (int tile = share.begin; tile < share.end; ++tile, state.next()) {
    const int64_t place = kv_place(op.kv, share.see.x, tile * kTileKeys + lane % kTileKeys, share.kv_head);
    ring.wait_turn(state);
    if (lane == 0) barrier_expect(&ring.full[state.stage], kRows * kRowBytes);
    __syncwarp();
    const void* from = lane < kTileKeys && !H::kRotated ? op.kv.k : op.kv.v;
    if (lane < kRows) {
      bulk_load(ring.at(state) + lane * H::kRow * 2, static_cast<const attend_t*>(from) + place, kRowBytes,
                &ring.full[state.stage]);
    }
    __syncwarp();
  }
}

template <int kCount>
__device__ __forceinline__ void load_values(const void* from, bool f32, int at, float* x) {
  if (f32) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 v = __ldcg(reinterpret_cast<const float4*>(static_cast<const float*>(from) + at + i));
      x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint2 v = __ldcg(reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(from) + at + i));
      const float2 a = unpack_bf16x2(v.x), b = unpack_bf16x2(v.y);
      x[i] = a.x, x[i + 1] = a.y, x[i + 2] = b.x, x[i + 3] = b.y;
    }
  }
}

template <int kCount>
__device__ __forceinline__ void store_values(attend_t* to, const float* x) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    *reinterpret_cast<uint2*>(to + i) = make_uint2(pack_attend(x[i], x[i + 1]), pack_attend(x[i + 2], x[i + 3]));
  }
}

// A norm's weights, as HeadValues.
template <typename H>
struct HeadWeights {
  static constexpr int kN = H::kPerLane;
  float low[kN], high[kN];
  __device__ __forceinline__ void load(const float* from, int lane) {
    load_values<kN>(from, true, lane * kN, low);
    load_values<kN>(from, true, H::kHalf + lane * kN, high);
  }
};

// A warp's head: lane holds elements kPerLane * lane .. of each half, which pair up.
template <typename H>
struct HeadValues {
  static constexpr int kN = H::kPerLane;
  float low[kN], high[kN];
  __device__ __forceinline__ void load(const StepAttend& op, const void* from, uint32_t number, int head, int lane) {
    const int at = head * H::kDim + lane * kN;
    if (!op.from.at) {
      load_values<kN>(from, op.f32, at, low);
      load_values<kN>(from, op.f32, at + H::kHalf, high);
      return;
    }
    uint4 words[kN / 2];  // fours of each half
    const auto place = [&](int i) {
      return static_cast<const uint32_t*>(from) + at + i / (kN / 4) * H::kHalf + i % (kN / 4) * 4;
    };
    await(place, number, words);
#pragma unroll
    for (int i = 0; i < kN; ++i) low[i] = high[i] = 0;
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) add_values(words[i], low + 4 * i), add_values(words[kN / 4 + i], high + 4 * i);
  }
  __device__ __forceinline__ void normalise(float eps) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kN; ++i) squares += low[i] * low[i] + high[i] * high[i];
    const float factor = rsqrtf(warp_sum(squares) / H::kDim + eps);
#pragma unroll
    for (int i = 0; i < kN; ++i) low[i] *= factor, high[i] *= factor;
  }
  __device__ __forceinline__ void turn(const HeadWeights<H>& weight, const float2* turns, int lane) {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float x = low[i] * weight.low[i], y = high[i] * weight.high[i];
      const float2 t = turns[lane * kN + i];
      low[i] = x * t.x - y * t.y;
      high[i] = y * t.x + x * t.y;
    }
  }
};

// Not inlined: with the path for large angles it is long, and instructions have to be fetched too.
__device__ __noinline__ float2 turn_by(float angle) {
  float2 turn;
  sincosf(angle, &turn.y, &turn.x);
  return turn;
}

// What is the same in all layers of a kind: made at the first of them.
template <typename H>
struct AttendFacts {
  SeenShare seen;
  const int32_t* pos;
  const float* inv_freq;
  float2 turns[H::kHalf];  // cosines and sines
  __device__ __forceinline__ void forget() { seen.row = nullptr, pos = nullptr, inv_freq = nullptr; }
  __device__ __forceinline__ void make(const StepAttend& op) {
    if (seen.fits(op) && pos == op.pos && inv_freq == op.inv_freq) return;
    compute_barrier();  // all threads have looked
    const float angle = static_cast<float>(__ldcg(op.pos));
    for (int i = threadIdx.x; i < H::kHalf; i += kComputeThreads) turns[i] = turn_by(angle * op.inv_freq[i]);
    if (threadIdx.x == 0) seen.of(op), pos = op.pos, inv_freq = op.inv_freq;
    compute_barrier();
  }
};

// The weights that head `item` of the block's work (run_attend) meets: of a query where it meets V in K's place those
// of K's norm too, since K is V times them there.
template <typename H>
__device__ __forceinline__ HeadWeights<H> head_weights(const StepAttend& op, int item, int lane) {
  HeadWeights<H> weights;
  weights.load(item < op.group ? op.q_norm : op.k_norm, lane);
  if (H::kRotated && item < op.group && lane * H::kPerLane >= H::kRotated) {
    HeadWeights<H> of_k;
    of_k.load(op.kv.k_norm, lane);
#pragma unroll
    for (int i = 0; i < H::kPerLane; ++i) weights.low[i] *= of_k.low[i], weights.high[i] *= of_k.high[i];
  }
  return weights;
}

// Query head `head` of the block's KV head into the scratch, as its products meet it.
template <typename H>
__device__ __forceinline__ void make_query(const StepAttend& op, const KeyShare& share, uint32_t number,
                                           const HeadWeights<H>& weights, const float2* turns, attend_t* query,
                                           int head, int lane) {
  constexpr int kN = H::kPerLane;
  HeadValues<H> x;
  x.load(op, op.q, number, share.kv_head * op.group + head, lane);
  x.normalise(op.eps);
  x.turn(weights, turns, lane);
  attend_t *low = query + head * H::kRow + lane * kN, *high = low + H::kHalf;
  if (H::kRotated > 0 && lane * kN < H::kRotated) {
    low = query + head * H::kRow + H::kDim + lane * kN, high = low + H::kRotated;
  }
  store_values<kN>(low, x.low);
  store_values<kN>(high, x.high);
}

// The newest key and value, into the cache and into `fresh`.
template <typename H>
__device__ __forceinline__ void make_newest(const StepAttend& op, const KeyShare& share, uint32_t number,
                                            const HeadWeights<H>& weights, const float2* turns, attend_t* fresh,
                                            bool value, int lane) {
  constexpr int kN = H::kPerLane;
  const int64_t place = kv_place(op.kv, share.see.x, share.see.y, share.kv_head);
  HeadValues<H> x;
  x.load(op, value && !H::kRotated ? op.v : op.k, number, share.kv_head, lane);
  x.normalise(op.eps);
  if (value || H::kRotated) {
    attend_t *to = static_cast<attend_t*>(op.kv.v) + place + lane * kN,
             *mine = fresh + (H::kRotated ? 0 : H::kRow) + lane * kN;
    store_values<kN>(to, x.low), store_values<kN>(to + H::kHalf, x.high);
    store_values<kN>(mine, x.low), store_values<kN>(mine + H::kHalf, x.high);
    if (!H::kRotated) return;
  }
  x.turn(weights, turns, lane);
  if (H::kRotated && lane * kN >= H::kRotated) return;
  const int at = H::kRotated ? H::kDim + lane * kN : lane * kN, other = H::kRotated ? H::kRotated : H::kHalf;
  attend_t *to = static_cast<attend_t*>(H::kRotated ? op.kv.v : op.kv.k) + place + at, *mine = fresh + at;
  store_values<kN>(to, x.low), store_values<kN>(to + other, x.high);
  store_values<kN>(mine, x.low), store_values<kN>(mine + other, x.high);
}

// The newest row takes its place in its tile. The stage is overwritten by the copy engine later: hence the fence.
template <typename H>
__device__ __forceinline__ void place_newest(uint8_t* stage, const attend_t* fresh, int row) {
  constexpr int kWords = H::kRow / 8;  // of 16 bytes; the padding too
  const uint4* from = reinterpret_cast<const uint4*>(fresh);
  uint4* to = reinterpret_cast<uint4*>(stage) + row * kWords;
  const int i = threadIdx.x;
  if (i < kWords) to[i] = from[i];
  if (!H::kRotated && i >= 128 && i < 128 + kWords) to[kTileKeys * kWords + i - 128] = from[kWords + i - 128];
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  compute_barrier();
}

// This warp's part of the scores [8, 16] of a tile: its steps of depth.
template <typename H>
__device__ __forceinline__ void score_tile(const uint8_t* stage, const uint32_t (&query)[H::kSteps][2], float* scores,
                                           int warp, int lane) {
  const attend_t* keys = reinterpret_cast<const attend_t*>(stage);
  float c[2][4] = {};
#pragma unroll
  for (int i = 0; i < H::kSteps; ++i) {
    uint32_t b[4];
    load_matrices(b, keys + (lane % 8 + lane / 16 * 8) * H::kRow + H::depth(warp, i) + lane / 8 % 2 * 8);
    const uint32_t a[4] = {query[i][0], 0, query[i][1], 0};
    multiply(c[0], a, b[0], b[1]);
    multiply(c[1], a, b[2], b[3]);
  }
  float* to = scores + (warp * kQueryRows + lane / 4) * kTileKeys + lane % 4 * 2;
  *reinterpret_cast<float2*>(to) = make_float2(c[0][0], c[0][1]);
  *reinterpret_cast<float2*>(to + 8) = make_float2(c[1][0], c[1][1]);
}

// Thread t < 128 has key t % 16 of query row t / 16; its running maximum (base 2) and sum.
struct SoftRow {
  float top = -INFINITY, total = 0;
};

template <typename L>
__device__ __forceinline__ void soften_tile(uint8_t* scratch, SoftRow& row, const int4& see, int base) {
  if (threadIdx.x >= kQueryRows * kTileKeys) return;
  const int key = threadIdx.x % kTileKeys, head = threadIdx.x / kTileKeys;
  const float* scores = reinterpret_cast<const float*>(scratch + L::kScores);
  float x = 0;
#pragma unroll
  for (int w = 0; w < kConsumerWarps; ++w) x += scores[w * kQueryRows * kTileKeys + threadIdx.x];
  x = base + key >= see.z && base + key <= see.w ? x * kLog2e : -INFINITY;
  float top = fmaxf(row.top, x);
#pragma unroll
  for (int mask = 1; mask < kTileKeys; mask *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
  const float weight = top == -INFINITY ? 0.0f : exp2_fast(x - top + kWeightLift);
  const float keep = row.top == -INFINITY ? 0.0f : exp2_fast(row.top - top);
  float sum = weight;
#pragma unroll
  for (int mask = 1; mask < kTileKeys; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  row.top = top, row.total = row.total * keep + sum;
  reinterpret_cast<attend_t*>(scratch + L::kWeights)[head * (kTileKeys + kRowPad) + key] = from_float<attend_t>(weight);
  if (key == 0) reinterpret_cast<float*>(scratch + L::kKeep)[head] = keep;
}

// sum = sum * keep + weights * values, for the warp's columns.
template <typename H>
__device__ __forceinline__ void add_values(const uint8_t* scratch, const uint8_t* stage, float (&sum)[H::kColumns][4],
                                           int warp, int lane) {
  using L = AttendLayout<H>;
  const attend_t* values =
      reinterpret_cast<const attend_t*>(stage) + (H::kRotated ? 0 : kTileKeys * H::kRow) + warp * (H::kColumns * 8);
  const float keep = reinterpret_cast<const float*>(scratch + L::kKeep)[lane / 4];
  const uint8_t* weights = scratch + L::kWeights + (lane / 4 * (kTileKeys + kRowPad) + lane % 4 * 2) * 2;
  const uint32_t a[4] = {*reinterpret_cast<const uint32_t*>(weights), 0,
                         *reinterpret_cast<const uint32_t*>(weights + 16), 0};
#pragma unroll
  for (int t = 0; t < H::kColumns; t += 2) {
    uint32_t b[4];
    load_matrices_transposed(b, values + lane % 16 * H::kRow + t * 8 + lane / 16 * 8);
    sum[t][0] *= keep, sum[t][1] *= keep, sum[t + 1][0] *= keep, sum[t + 1][1] *= keep;
    multiply(sum[t], a, b[0], b[1]);
    multiply(sum[t + 1], a, b[2], b[3]);
  }
}

template <typename H>
__host__ __device__ constexpr int share_floats(int group) {
  return group * H::kDim + 2 * kQueryRows;  // sums, then maxima and totals
}

// The last block of a KV head to come adds up the shares: each weighted by how its maximum compares.
template <typename H>
__device__ __forceinline__ void merge_shares(const StepAttend& op, const KeyShare& share, uint32_t number,
                                             const float* shares, float* factors) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, words = share_floats<H>(op.group);
  if (warp < op.group) {
    const float* stats = shares + op.group * H::kDim + warp;
    float top = -INFINITY, total = 0;
    for (int n = lane; n < share.active; n += 32) top = fmaxf(top, __ldcg(stats + n * words));
    top = warp_max(top);
    for (int n = lane; n < share.active; n += 32) {
      const float weight = top == -INFINITY ? 0.0f : exp2_fast(__ldcg(stats + n * words) - top);
      factors[n * kQueryRows + warp] = weight;
      total += weight * __ldcg(stats + n * words + kQueryRows);
    }
    total = warp_sum(total);
    const float factor = total > 0 ? 1.0f / total : 0.0f;
    for (int n = lane; n < share.active; n += 32) factors[n * kQueryRows + warp] *= factor;
  }
  compute_barrier();
  const int base = share.kv_head * op.group * H::kDim;
  for (int i = threadIdx.x; i < op.group * H::kDim / 4; i += kComputeThreads) {
    const int head = i / (H::kDim / 4);
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int n = 0; n < share.active; ++n) {
      const float4 x = __ldcg(reinterpret_cast<const float4*>(shares + n * words + 4 * i));
      const float weight = factors[n * kQueryRows + head];
      sum.x += weight * x.x, sum.y += weight * x.y, sum.z += weight * x.z, sum.w += weight * x.w;
    }
    if (op.to.at) {
      put_words(op.to.at + word_place(base + 4 * i), sum, number);
    } else {
      *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(op.out) + base + 4 * i) =
          make_uint2(pack_bf16x2(sum.x, sum.y), pack_bf16x2(sum.z, sum.w));
    }
  }
}

template <typename H>
__device__ __forceinline__ void finish_share(const StepAttend& op, const KeyShare& share, uint32_t number,
                                             uint8_t* scratch, const SoftRow& row, const float (&sum)[H::kColumns][4],
                                             float* partial, int* counters, int* last) {
  using L = AttendLayout<H>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = lane / 4;
  float *tops = reinterpret_cast<float*>(scratch + L::kTop), *totals = reinterpret_cast<float*>(scratch + L::kTotal);
  if (threadIdx.x < kQueryRows * kTileKeys && threadIdx.x % kTileKeys == 0) {
    tops[threadIdx.x / kTileKeys] = row.top, totals[threadIdx.x / kTileKeys] = row.total;
  }
  compute_barrier();
  float* shares = partial + static_cast<int64_t>(share.kv_head) * op.splits * share_floats<H>(op.group);
  float* mine = shares + share.split * share_floats<H>(op.group);
  if (head < op.group) {
    const float factor = share.active > 1 ? 1.0f : (totals[head] > 0 ? 1.0f / totals[head] : 0.0f);
    const int base = (share.kv_head * op.group + head) * H::kDim;
#pragma unroll
    for (int t = 0; t < H::kColumns; ++t) {
      const int e = warp * (H::kColumns * 8) + t * 8 + lane % 4 * 2;
      const float x = sum[t][0] * factor, y = sum[t][1] * factor;
      if (share.active == 1 && op.to.at) {
        put_words(op.to.at + word_place(base + e), x, y, number);
      } else if (share.active == 1) {
        *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(op.out) + base + e) = pack_bf16x2(x, y);
      } else {
        *reinterpret_cast<float2*>(mine + head * H::kDim + e) = make_float2(x, y);
      }
    }
  }
  if (share.active == 1) return;
  if (threadIdx.x < op.group) {
    mine[op.group * H::kDim + threadIdx.x] = tops[threadIdx.x];
    mine[op.group * H::kDim + kQueryRows + threadIdx.x] = totals[threadIdx.x];
  }
  compute_barrier();
  if (threadIdx.x == 0) {  // `inc` goes back to zero after active - 1
    int before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counters + share.kv_head), "r"(share.active - 1)
                 : "memory");
    *last = before == share.active - 1;
  }
  compute_barrier();
  if (*last) merge_shares<H>(op, share, number, shares, reinterpret_cast<float*>(scratch + L::kScores));
}

// Of the block's heads, item 0 .. group - 1 are queries, then, where the block owns the newest token, its key and,
// unless one row serves as both, its value.
template <typename H>
__device__ __forceinline__ void run_attend(const StepAttend& op, const GridBarrier& barrier, const Numbers& numbers,
                                           AttendFacts<H>& facts, float* partial, int* counters, const Ring& ring,
                                           RingState& state, uint8_t* scratch, int* last) {
  using L = AttendLayout<H>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  facts.make(op);
  const KeyShare share = facts.seen.share;
  const uint32_t number = numbers.of(op.from);
  const int items = op.group + (share.owns_newest() ? (H::kRotated ? 1 : 2) : 0);
  if (!op.from.at) barrier.wait();
  if (!share.mine()) return;
  HeadWeights<H> weights = head_weights<H>(op, min(warp, items - 1), lane);  // not waited for yet
  attend_t *query = reinterpret_cast<attend_t*>(scratch + L::kQuery),
           *fresh = reinterpret_cast<attend_t*>(scratch + L::kFresh);
  for (int item = warp; item < items; item += kConsumerWarps) {
    if (item != warp) weights = head_weights<H>(op, item, lane);
    if (item < op.group) {
      make_query<H>(op, share, number, weights, facts.turns, query, item, lane);
    } else {
      make_newest<H>(op, share, number, weights, facts.turns, fresh, item > op.group, lane);
    }
  }
  for (int i = threadIdx.x; i < kQueryRows * (kTileKeys + kRowPad) / 2; i += kComputeThreads) {
    reinterpret_cast<uint32_t*>(scratch + L::kWeights)[i] = 0;  // rows without a head stay zero
  }
  compute_barrier();
  uint32_t fragments[H::kSteps][2];
#pragma unroll
  for (int i = 0; i < H::kSteps; ++i) {
    const attend_t* from = query + lane / 4 * H::kRow + H::depth(warp, i) + lane % 4 * 2;
    const bool real = lane / 4 < op.group;  // the rows past the group were never written
    fragments[i][0] = real ? *reinterpret_cast<const uint32_t*>(from) : 0;
    fragments[i][1] = real ? *reinterpret_cast<const uint32_t*>(from + 8) : 0;
  }
  SoftRow row;
  float sum[H::kColumns][4] = {};
  for (int tile = share.begin; tile < share.end; ++tile, state.next()) {
    uint8_t* stage = ring.at(state);
    ring.wait_full(state);
    if (tile == share.see.y / kTileKeys && share.owns_newest()) {
      place_newest<H>(stage, fresh, share.see.y % kTileKeys);
    }
    score_tile<H>(stage, fragments, reinterpret_cast<float*>(scratch + L::kScores), warp, lane);
    compute_barrier();
    soften_tile<L>(scratch, row, share.see, tile * kTileKeys);
    compute_barrier();
    add_values<H>(scratch, stage, sum, warp, lane);
    ring.release(state);
  }
  finish_share<H>(op, share, numbers.of(op.to), scratch, row, sum, partial, counters, last);
}
#endif

}  // namespace gemma4::cuda
