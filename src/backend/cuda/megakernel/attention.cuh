// qk_norm_rope_cache() and attention() in the decode megakernel: flash decoding over keys that arrive through the
// pipeline before the queries exist, 16 keys to a stage. A CTA has one KV head and a range of its keys; it computes
// norm and RoPE of its queries for itself. The new key and value are not in the cache yet: the CTA with the last tile
// computes them, for the cache and for itself.
#pragma once

#include "backend/cuda/attention/kv_cache.cuh"
#include "backend/cuda/device/activation.cuh"
#include "backend/cuda/device/cp_async.cuh"
#include "backend/cuda/device/element.cuh"
#include "backend/cuda/device/mma.cuh"
#include "backend/cuda/device/reduce.cuh"
#include "backend/cuda/megakernel/flagged_memory.cuh"
#include "backend/cuda/megakernel/grid_barrier.cuh"
#include "backend/cuda/megakernel/instruction_clock.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // mbarriers
// kRotated 0: keys and values are separate rows. Else one row of kDim + 2 * kRotated serves as both (KvCacheView).
template <int kDim_, int kRotated_>
struct HeadShape {
  static constexpr int kDim = kDim_, kRotated = kRotated_, kHalf = kDim / 2;
  static constexpr int kElements = kDim + 2 * kRotated;  // of a cached row
  static constexpr int kRow = kElements + kRowPad;
  static constexpr int kPerLane = kHalf / 32;                 // pairs of a head that a lane rotates
  static constexpr int kSteps = kDim / 16 / kConsumerWarps;   // of depth for a warp, where the query is not zero
  static constexpr int kColumns = kDim / kConsumerWarps / 8;  // column tiles of a warp
  static_assert((kRotated ? 1 : 2) * kTileKeys * kRow * 2 <= kStageBytes);

  // Where step `i` of the warp begins in a row of keys. In a compressed row: first the elements of V that serve as K's,
  // then the rotated elements of K.
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
constexpr float kMegakernelLog2e = 1.4426950408889634f;

// Byte offsets in attention's scratch.
template <typename H>
struct AttentionScratch {
  static constexpr int kQuery = 0;                                                        // [8, kRow]
  static constexpr int kScores = kQuery + kQueryRows * H::kRow * 2;                       // float [8 warps, 8, 16]
  static constexpr int kWeights = kScores + kConsumerWarps * kQueryRows * kTileKeys * 4;  // [8, 16 + 8]
  static constexpr int kKeep = kWeights + kQueryRows * (kTileKeys + kRowPad) * 2;         // float [8]
  static constexpr int kTop = kKeep + 32, kTotal = kTop + 32;                             // float [8]
  static constexpr int kNew = kTotal + 32;                                                // the new row, as in a tile
  static constexpr int kEnd = kNew + (H::kRotated ? 1 : 2) * H::kRow * 2;
  static_assert(kEnd <= kScratchLeast && kNew % 16 == 0);
};

// Starts this thread's part of the copies of a stage's rows; lane i of each warp names the beginning of row i.
template <typename H, int kThreads>
__device__ __forceinline__ void copy_rows(uint8_t* stage, const attention_t* from, int thread, uint64_t policy) {
  constexpr int kVectors = H::kElements / 8, kRows = (H::kRotated ? 1 : 2) * kTileKeys;  // 16 bytes each
  static_assert(kRows * kVectors % kThreads == 0);
  const uint32_t to = shared_address(stage);
  const auto address = reinterpret_cast<unsigned long long>(from);
#pragma unroll 8
  for (int i = thread; i < kRows * kVectors; i += kThreads) {
    const int row = i / kVectors, vector = i % kVectors;
    const auto begin = __shfl_sync(0xffffffffu, address, row);
    copy16_async(to + (row * H::kRow + vector * 8) * 2, reinterpret_cast<const attention_t*>(begin) + vector * 8,
                 policy);
  }
}

// The producer warp: a tile of the keys and values of a KV head of sequence `seq`.
template <typename H, typename Plan>
__device__ __forceinline__ void produce_key_tile(const KvCacheView& kv, int seq, int kv_head, int tile,
                                                 const Pipeline<Plan>& pipeline, ProducerState<Plan>& state, int thread,
                                                 uint64_t policy) {
  constexpr int kRowBytes = H::kElements * 2, kRows = (H::kRotated ? 1 : 2) * kTileKeys;
  const int lane = thread % 32;
  const int64_t offset = kv_offset(kv, seq, tile * kTileKeys + lane % kTileKeys, kv_head);
  pipeline.acquire(state);
  const void* base = lane < kTileKeys && !H::kRotated ? kv.k : kv.v;
  const attention_t* from = static_cast<const attention_t*>(base) + offset;  // of row `lane`
  if (!pipeline.bulk_copies) {
    copy_rows<H, Plan::kProducers>(pipeline.at(state), from, thread, policy);
    barrier_arrive_after_copies(&pipeline.full[state.stage]);
    return;
  }
  if (lane == 0) barrier_expect(&pipeline.full[state.stage], kRows * kRowBytes);
  __syncwarp();
  if (lane < kRows) {
    bulk_load(pipeline.at(state) + lane * H::kRow * 2, from, kRowBytes, &pipeline.full[state.stage]);
  }
  __syncwarp();
}

// The same for all tiles of this CTA.
template <typename H, typename Plan>
__device__ __forceinline__ void produce_keys(const AttentionInstruction& op, CachedKeyRange& cached,
                                             const Pipeline<Plan>& pipeline, ProducerState<Plan>& state, int thread,
                                             uint64_t policy) {
  const KeyRange& range = cached.of(op);
  for (int tile = range.begin; tile < range.end; ++tile, state.next()) {
    produce_key_tile<H>(op.kv, range.see.x, range.kv_head, tile, pipeline, state, thread, policy);
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
__device__ __forceinline__ void store_values(attention_t* to, const float* x) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    *reinterpret_cast<uint2*>(to + i) = make_uint2(pack_attention(x[i], x[i + 1]), pack_attention(x[i + 2], x[i + 3]));
  }
}

// A norm's weights, distributed over the lanes as HeadValues.
template <typename H>
struct HeadNormWeights {
  static constexpr int kN = H::kPerLane;
  float low[kN], high[kN];
  __device__ __forceinline__ void load(const float* from, int lane) {
    load_values<kN>(from, true, lane * kN, low);
    load_values<kN>(from, true, H::kHalf + lane * kN, high);
  }
};

// A head in a warp: each lane holds kPerLane elements of both halves, from kPerLane * lane on. RoPE pairs the halves.
template <typename H>
struct HeadValues {
  static constexpr int kN = H::kPerLane;
  float low[kN], high[kN];
  __device__ __forceinline__ void load(const AttentionInstruction& op, const void* from, uint32_t epoch, int head,
                                       int lane) {
    const int at = head * H::kDim + lane * kN;
    if (!op.from.values) {
      load_values<kN>(from, op.f32, at, low);
      load_values<kN>(from, op.f32, at + H::kHalf, high);
      return;
    }
    uint4 flagged[kN / 2];  // vectors of both halves
    const auto address = [&](int i) {
      return static_cast<const uint32_t*>(from) + at + i / (kN / 4) * H::kHalf + i % (kN / 4) * 4;
    };
    spin_wait(address, epoch, flagged);
#pragma unroll
    for (int i = 0; i < kN; ++i) low[i] = high[i] = 0;
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) add_values(flagged[i], low + 4 * i), add_values(flagged[kN / 4 + i], high + 4 * i);
  }
  __device__ __forceinline__ void normalise(float eps) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kN; ++i) squares += low[i] * low[i] + high[i] * high[i];
    const float factor = rsqrtf(warp_sum(squares) / H::kDim + eps);
#pragma unroll
    for (int i = 0; i < kN; ++i) low[i] *= factor, high[i] *= factor;
  }
  __device__ __forceinline__ void rotate(const HeadNormWeights<H>& weight, const float2* rotations, int lane) {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float x = low[i] * weight.low[i], y = high[i] * weight.high[i];
      const float2 t = rotations[lane * kN + i];
      low[i] = x * t.x - y * t.y;
      high[i] = y * t.x + x * t.y;
    }
  }
};

// Not inlined: the path for large angles is long, and long code costs instruction fetches.
static __device__ __noinline__ float2 rotation_of(float angle) {
  float2 rotation;
  sincosf(angle, &rotation.y, &rotation.x);
  return rotation;
}

// What is the same in all layers of one attention kind, computed at the first of them.
template <typename H>
struct AttentionInvariants {
  CachedKeyRange cached;
  const int32_t* pos;
  const float* inv_freq;
  float2 rotations[H::kHalf];  // cosines and sines
  __device__ __forceinline__ void reset() { cached.row = nullptr, pos = nullptr, inv_freq = nullptr; }
  __device__ __forceinline__ void update(const AttentionInstruction& op) {
    if (cached.fits(op) && pos == op.pos && inv_freq == op.inv_freq) return;
    consumer_barrier();  // all threads have read the old values
    const float angle = static_cast<float>(__ldcg(op.pos));
    for (int i = threadIdx.x; i < H::kHalf; i += kConsumerThreads) rotations[i] = rotation_of(angle * op.inv_freq[i]);
    if (threadIdx.x == 0) cached.of(op), pos = op.pos, inv_freq = op.inv_freq;
    consumer_barrier();
  }
};

// The norm weights for head `item` of the CTA's work (run_attention). Where a query is multiplied by V in place of K,
// they include the weights of K's norm, because there K is V times these weights.
template <typename H>
__device__ __forceinline__ HeadNormWeights<H> head_weights(const AttentionInstruction& op, int item, int lane) {
  HeadNormWeights<H> weights;
  weights.load(item < op.group ? op.q_norm : op.k_norm, lane);
  if (H::kRotated && item < op.group && lane * H::kPerLane >= H::kRotated) {
    HeadNormWeights<H> of_k;
    of_k.load(op.kv.k_norm, lane);
#pragma unroll
    for (int i = 0; i < H::kPerLane; ++i) weights.low[i] *= of_k.low[i], weights.high[i] *= of_k.high[i];
  }
  return weights;
}

// Norm and RoPE of a query x, into `row` in the order of a row of keys.
template <typename H>
__device__ __forceinline__ void store_query(HeadValues<H>& x, float eps, const HeadNormWeights<H>& weights,
                                            const float2* rotations, attention_t* row, int lane) {
  constexpr int kN = H::kPerLane;
  x.normalise(eps);
  x.rotate(weights, rotations, lane);
  attention_t *low = row + lane * kN, *high = low + H::kHalf;
  if (H::kRotated > 0 && lane * kN < H::kRotated) low = row + H::kDim + lane * kN, high = low + H::kRotated;
  store_values<kN>(low, x.low);
  store_values<kN>(high, x.high);
}

// Of query head `head` of the CTA's KV head, into the scratch.
template <typename H>
__device__ __forceinline__ void make_query(const AttentionInstruction& op, const KeyRange& range, uint32_t epoch,
                                           const HeadNormWeights<H>& weights, const float2* rotations,
                                           attention_t* query, int head, int lane) {
  HeadValues<H> x;
  x.load(op, op.q, epoch, range.kv_head * op.group + head, lane);
  store_query<H>(x, op.eps, weights, rotations, query + head * H::kRow, lane);
}

// Norm and RoPE of a new key, or of a new value, x: into the cache at `offset` and, where there is one, into `new_row`.
template <typename H>
__device__ __forceinline__ void store_new_key_value(HeadValues<H>& x, const KvCacheView& kv, int64_t offset, float eps,
                                                    const HeadNormWeights<H>& weights, const float2* rotations,
                                                    attention_t* new_row, bool value, int lane) {
  constexpr int kN = H::kPerLane;
  x.normalise(eps);
  if (value || H::kRotated) {
    attention_t* to = static_cast<attention_t*>(kv.v) + offset + lane * kN;
    store_values<kN>(to, x.low), store_values<kN>(to + H::kHalf, x.high);
    if (new_row) {
      attention_t* mine = new_row + (H::kRotated ? 0 : H::kRow) + lane * kN;
      store_values<kN>(mine, x.low), store_values<kN>(mine + H::kHalf, x.high);
    }
    if (!H::kRotated) return;
  }
  x.rotate(weights, rotations, lane);
  if (H::kRotated && lane * kN >= H::kRotated) return;
  const int at = H::kRotated ? H::kDim + lane * kN : lane * kN, other = H::kRotated ? H::kRotated : H::kHalf;
  attention_t* to = static_cast<attention_t*>(H::kRotated ? kv.v : kv.k) + offset + at;
  store_values<kN>(to, x.low), store_values<kN>(to + other, x.high);
  if (new_row) store_values<kN>(new_row + at, x.low), store_values<kN>(new_row + at + other, x.high);
}

// Copies the new row into its tile. The fence orders this write before the TMA overwrites the stage.
template <typename H>
__device__ __forceinline__ void insert_new_key_value(uint8_t* stage, const attention_t* new_row, int row) {
  constexpr int kVectors = H::kRow / 8;  // of 16 bytes, with the padding
  const uint4* from = reinterpret_cast<const uint4*>(new_row);
  uint4* to = reinterpret_cast<uint4*>(stage) + row * kVectors;
  const int i = threadIdx.x;
  if (i < kVectors) to[i] = from[i];
  if (!H::kRotated && i >= 128 && i < 128 + kVectors) to[kTileKeys * kVectors + i - 128] = from[kVectors + i - 128];
  fence_before_bulk_copies();
  consumer_barrier();
}

// The scores [8, 16] of a tile over this warp's steps of depth.
template <typename H>
__device__ __forceinline__ void score_tile(const uint8_t* stage, const uint32_t (&query)[H::kSteps][2], float* scores,
                                           int warp, int lane) {
  const attention_t* keys = reinterpret_cast<const attention_t*>(stage);
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

// Running maximum (base 2) and sum of a query row. Thread t < 128 has key t % 16 of query row t / 16.
struct SoftmaxRow {
  float top = -INFINITY, total = 0;
};

template <typename L>
__device__ __forceinline__ void softmax_tile(uint8_t* scratch, SoftmaxRow& row, const int4& see, int base) {
  if (threadIdx.x >= kQueryRows * kTileKeys) return;
  const int key = threadIdx.x % kTileKeys, head = threadIdx.x / kTileKeys;
  const float* scores = reinterpret_cast<const float*>(scratch + L::kScores);
  float x = 0;
#pragma unroll
  for (int w = 0; w < kConsumerWarps; ++w) x += scores[w * kQueryRows * kTileKeys + threadIdx.x];
  x = base + key >= see.z && base + key <= see.w ? x * kMegakernelLog2e : -INFINITY;
  float top = fmaxf(row.top, x);
#pragma unroll
  for (int mask = 1; mask < kTileKeys; mask *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
  const float weight = top == -INFINITY ? 0.0f : exp2_fast(x - top + kWeightLift);
  const float keep = row.top == -INFINITY ? 0.0f : exp2_fast(row.top - top);
  float sum = weight;
#pragma unroll
  for (int mask = 1; mask < kTileKeys; mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  row.top = top, row.total = row.total * keep + sum;
  reinterpret_cast<attention_t*>(scratch + L::kWeights)[head * (kTileKeys + kRowPad) + key] =
      from_float<attention_t>(weight);
  if (key == 0) reinterpret_cast<float*>(scratch + L::kKeep)[head] = keep;
}

// sum = sum * keep + weights * values, for the warp's columns.
template <typename H>
__device__ __forceinline__ void accumulate_values(const uint8_t* scratch, const uint8_t* stage,
                                                  float (&sum)[H::kColumns][4], int warp, int lane) {
  using L = AttentionScratch<H>;
  const attention_t* values =
      reinterpret_cast<const attention_t*>(stage) + (H::kRotated ? 0 : kTileKeys * H::kRow) + warp * (H::kColumns * 8);
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
__host__ __device__ constexpr int partial_floats(int group) {
  return group * H::kDim + 2 * kQueryRows;  // sums, then maxima and totals
}

// The last CTA of a KV head to finish adds up the partials, each weighted by how its maximum compares.
template <typename H>
__device__ __forceinline__ void merge_partials(const AttentionInstruction& op, const KeyRange& range, uint32_t epoch,
                                               const float* partials, float* factors) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, stride = partial_floats<H>(op.group);
  if (warp < op.group) {
    const float* stats = partials + op.group * H::kDim + warp;
    float top = -INFINITY, total = 0;
    for (int n = lane; n < range.active; n += 32) top = fmaxf(top, __ldcg(stats + n * stride));
    top = warp_max(top);
    for (int n = lane; n < range.active; n += 32) {
      const float weight = top == -INFINITY ? 0.0f : exp2_fast(__ldcg(stats + n * stride) - top);
      factors[n * kQueryRows + warp] = weight;
      total += weight * __ldcg(stats + n * stride + kQueryRows);
    }
    total = warp_sum(total);
    const float factor = total > 0 ? 1.0f / total : 0.0f;
    for (int n = lane; n < range.active; n += 32) factors[n * kQueryRows + warp] *= factor;
  }
  consumer_barrier();
  const int base = range.kv_head * op.group * H::kDim;
  for (int i = threadIdx.x; i < op.group * H::kDim / 4; i += kConsumerThreads) {
    const int head = i / (H::kDim / 4);
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int n = 0; n < range.active; ++n) {
      const float4 x = __ldcg(reinterpret_cast<const float4*>(partials + n * stride + 4 * i));
      const float weight = factors[n * kQueryRows + head];
      sum.x += weight * x.x, sum.y += weight * x.y, sum.z += weight * x.z, sum.w += weight * x.w;
    }
    if (op.to.values) {
      store_flagged(op.to.values + flagged_offset(base + 4 * i), sum, epoch);
    } else {
      *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(op.out) + base + 4 * i) =
          make_uint2(pack_bf16x2(sum.x, sum.y), pack_bf16x2(sum.z, sum.w));
    }
  }
}

// Writes the result where this CTA has all keys of its KV head; else stores its partial.
template <typename H>
__device__ __forceinline__ void finish_range(const AttentionInstruction& op, const KeyRange& range, uint32_t epoch,
                                             uint8_t* scratch, const SoftmaxRow& row,
                                             const float (&sum)[H::kColumns][4], float* partial, int* counters,
                                             int* last) {
  using L = AttentionScratch<H>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = lane / 4;
  float *tops = reinterpret_cast<float*>(scratch + L::kTop), *totals = reinterpret_cast<float*>(scratch + L::kTotal);
  if (threadIdx.x < kQueryRows * kTileKeys && threadIdx.x % kTileKeys == 0) {
    tops[threadIdx.x / kTileKeys] = row.top, totals[threadIdx.x / kTileKeys] = row.total;
  }
  consumer_barrier();
  float* partials = partial + static_cast<int64_t>(range.kv_head) * op.splits * partial_floats<H>(op.group);
  float* mine = partials + range.split * partial_floats<H>(op.group);
  if (head < op.group) {
    const float factor = range.active > 1 ? 1.0f : (totals[head] > 0 ? 1.0f / totals[head] : 0.0f);
    const int base = (range.kv_head * op.group + head) * H::kDim;
#pragma unroll
    for (int t = 0; t < H::kColumns; ++t) {
      const int e = warp * (H::kColumns * 8) + t * 8 + lane % 4 * 2;
      const float x = sum[t][0] * factor, y = sum[t][1] * factor;
      if (range.active == 1 && op.to.values) {
        store_flagged(op.to.values + flagged_offset(base + e), x, y, epoch);
      } else if (range.active == 1) {
        *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(op.out) + base + e) = pack_bf16x2(x, y);
      } else {
        *reinterpret_cast<float2*>(mine + head * H::kDim + e) = make_float2(x, y);
      }
    }
  }
  if (range.active == 1) return;
  if (threadIdx.x < op.group) {
    mine[op.group * H::kDim + threadIdx.x] = tops[threadIdx.x];
    mine[op.group * H::kDim + kQueryRows + threadIdx.x] = totals[threadIdx.x];
  }
  consumer_barrier();
  if (threadIdx.x == 0) {  // `inc` wraps to zero after active - 1
    int before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counters + range.kv_head), "r"(range.active - 1)
                 : "memory");
    *last = before == range.active - 1;
  }
  consumer_barrier();
  if (*last) merge_partials<H>(op, range, epoch, partials, reinterpret_cast<float*>(scratch + L::kScores));
}

// The consumer warps. Items 0 .. group - 1 of the CTA's heads are queries. If the CTA owns the new token, its key
// follows and, unless one row serves as both, its value.
template <typename H, typename Plan>
__device__ __forceinline__ void run_attention(const AttentionInstruction& op, const GridBarrier& barrier,
                                              const Epochs& epochs, AttentionInvariants<H>& invariants, float* partial,
                                              int* counters, const Pipeline<Plan>& pipeline, PipelineState<Plan>& state,
                                              uint8_t* scratch, int* last, InstructionClock& clock) {
  using L = AttentionScratch<H>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  invariants.update(op);
  const KeyRange range = invariants.cached.range;
  const uint32_t epoch = epochs.of(op.from);
  const int items = op.group + (range.owns_new_key() ? (H::kRotated ? 1 : 2) : 0);
  if (!op.from.values) barrier.wait();
  if (!range.any()) return;
  HeadNormWeights<H> weights = head_weights<H>(op, min(warp, items - 1), lane);  // not waited for yet
  attention_t *query = reinterpret_cast<attention_t*>(scratch + L::kQuery),
              *new_row = reinterpret_cast<attention_t*>(scratch + L::kNew);
  for (int item = warp; item < items; item += kConsumerWarps) {
    if (item != warp) weights = head_weights<H>(op, item, lane);
    if (item < op.group) {
      make_query<H>(op, range, epoch, weights, invariants.rotations, query, item, lane);
    } else {
      const bool value = item > op.group;
      HeadValues<H> x;
      x.load(op, value && !H::kRotated ? op.v : op.k, epoch, range.kv_head, lane);
      store_new_key_value<H>(x, op.kv, kv_offset(op.kv, range.see.x, range.see.y, range.kv_head), op.eps, weights,
                             invariants.rotations, new_row, value, lane);
    }
  }
  for (int i = threadIdx.x; i < kQueryRows * (kTileKeys + kRowPad) / 2; i += kConsumerThreads) {
    reinterpret_cast<uint32_t*>(scratch + L::kWeights)[i] = 0;  // rows without a head stay zero
  }
  consumer_barrier();
  clock.input_ready();
  uint32_t fragments[H::kSteps][2];
#pragma unroll
  for (int i = 0; i < H::kSteps; ++i) {
    const attention_t* from = query + lane / 4 * H::kRow + H::depth(warp, i) + lane % 4 * 2;
    const bool real = lane / 4 < op.group;  // the rows past the group were never written
    fragments[i][0] = real ? *reinterpret_cast<const uint32_t*>(from) : 0;
    fragments[i][1] = real ? *reinterpret_cast<const uint32_t*>(from + 8) : 0;
  }
  SoftmaxRow row;
  float sum[H::kColumns][4] = {};
  for (int tile = range.begin; tile < range.end; ++tile, state.next()) {
    uint8_t* stage = pipeline.at(state);
    pipeline.wait_full(state);
    if (tile == range.see.y / kTileKeys && range.owns_new_key()) {
      insert_new_key_value<H>(stage, new_row, range.see.y % kTileKeys);
    }
    score_tile<H>(stage, fragments, reinterpret_cast<float*>(scratch + L::kScores), warp, lane);
    consumer_barrier();
    softmax_tile<L>(scratch, row, range.see, tile * kTileKeys);
    consumer_barrier();
    accumulate_values<H>(scratch, stage, sum, warp, lane);
    pipeline.release(state);
  }
  finish_range<H>(op, range, epochs.of(op.to), scratch, row, sum, partial, counters, last);
}
#endif

}  // namespace gemma4::cuda
