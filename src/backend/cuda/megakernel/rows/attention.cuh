// Attention of a step of several rows. Rows of one sequence that follow each other are a group: up to 16 query rows
// (rows times query heads of a KV head) are the 16 rows of the tensor core's operand, and share the keys. Each group
// and KV head is an item; the CTAs are divided evenly over the items, and those of an item divide its keys (flash
// decoding, as attention.cuh does for one row).
//
// The keys and values of the step's own rows are not in the cache when the pipeline fetches a tile. The CTA that has
// their tile computes them, for the cache and for the tile; so do CTAs of other groups of the same sequence, with the
// same result.
#pragma once

#include "backend/cuda/megakernel/attention.cuh"
#include "backend/cuda/megakernel/rows/exchange.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr int kGroupQueries = 16;   // query rows of a group
constexpr int kRowsSplitsMax = 60;  // CTAs that divide the keys of an item: their weights must fit the scratch

// The rows of the step (Row), read once.
struct StepRows {
  int4 see[kRowsMax];  // sequence, position, first key, last key
  int count;
};

// An item of this CTA: rows first .. first + rows - 1, and the tiles of keys that fall to it.
struct RowsItem {
  int first, rows, sequence, kv_head, index, split, splits, active, begin, end;
  __device__ __forceinline__ bool any() const { return begin < end; }
  __device__ __forceinline__ bool has(int pos) const { return pos / kTileKeys >= begin && pos / kTileKeys < end; }
};

// Walks the items of this CTA.
struct RowsItems {
  const StepRows& step;
  const AttentionInstruction& op;
  int most, groups = 0, splits, index;
  __device__ __forceinline__ RowsItems(const StepRows& step_, const AttentionInstruction& op_)
      : step(step_), op(op_), most(kGroupQueries / op_.group) {
    for (int begin = 0; begin < step.count; begin = group_end(begin)) ++groups;
    splits = min(max(static_cast<int>(gridDim.x) / (groups * op.kv.heads), 1), kRowsSplitsMax);
    index = static_cast<int>(blockIdx.x) / splits;
  }
  __device__ __forceinline__ int group_end(int begin) const {
    int end = begin + 1;
    while (end < step.count && end - begin < most && step.see[end].x == step.see[begin].x) ++end;
    return end;
  }
  __device__ __forceinline__ bool more() const { return index < groups * op.kv.heads; }
  __device__ __forceinline__ void next() { index += splits == 1 ? static_cast<int>(gridDim.x) : 1 << 30; }
  __device__ __forceinline__ RowsItem item() const {
    RowsItem item;
    const int group = index / op.kv.heads;
    item.first = 0;
    for (int i = 0; i < group; ++i) item.first = group_end(item.first);
    item.rows = group_end(item.first) - item.first;
    item.sequence = step.see[item.first].x;
    item.kv_head = index - group * op.kv.heads, item.index = index;
    item.split = static_cast<int>(blockIdx.x) % splits, item.splits = splits;
    int low = step.see[item.first].z, high = step.see[item.first].w;
    for (int i = 1; i < item.rows; ++i) {
      low = min(low, step.see[item.first + i].z), high = max(high, step.see[item.first + i].w);
    }
    const int least = op.kv.rotated ? 8 : 4;  // KeyRange says why
    const int first = low / kTileKeys, tiles = max(high / kTileKeys - first + 1, 1);
    const int each = max((tiles + splits - 1) / splits, least);
    item.active = (tiles + each - 1) / each;
    item.begin = first + item.split * each;
    item.end = max(min(item.begin + each, first + tiles), item.begin);
    return item;
  }
};

// The producer warps: the tiles of keys and values of this CTA.
template <typename H, typename Plan>
__device__ __forceinline__ void produce_rows_keys(const AttentionInstruction& op, const StepRows& step,
                                                  const Pipeline<Plan>& pipeline, ProducerState<Plan>& state,
                                                  int thread, uint64_t policy) {
  for (RowsItems items(step, op); items.more(); items.next()) {
    const RowsItem item = items.item();
    for (int tile = item.begin; tile < item.end; ++tile, state.next()) {
      produce_key_tile<H>(op.kv, item.sequence, item.kv_head, tile, pipeline, state, thread, policy);
    }
  }
}

// The limb warp has nothing to copy in these stages, but the consumers wait for it all the same: if it fell behind by a
// turn of the pipeline, a phase of its barriers would pass for another.
template <typename Plan>
__device__ __forceinline__ void pass_rows_keys(const AttentionInstruction& op, const StepRows& step,
                                               const Pipeline<Plan>& pipeline, uint64_t* limbs_full,
                                               PipelineState<Plan>& state, int lane) {
  for (RowsItems items(step, op); items.more(); items.next()) {
    const RowsItem item = items.item();
    for (int tile = item.begin; tile < item.end; ++tile, state.next()) {
      barrier_wait(pipeline.empty_at + 8 * state.stage, state.phase ^ 1);
      if (!pipeline.bulk_copies || lane == 0) barrier_arrive(&limbs_full[state.stage]);
    }
  }
}

// Cosines and sines of all rows, [row, kHalf]: each CTA has its own in memory. Computed at the first layer of a kind.
template <typename H>
struct RowRotations {
  const int32_t* pos = nullptr;
  const float* inv_freq = nullptr;
  // All consumer threads. `to`: this CTA's part of RowsWorkspace::rotations for this kind.
  __device__ __forceinline__ void update(const AttentionInstruction& op, int rows, float2* to) {
    if (pos == op.pos && inv_freq == op.inv_freq) return;
    for (int i = threadIdx.x; i < rows * H::kHalf; i += kConsumerThreads) {
      to[i] = rotation_of(static_cast<float>(__ldcg(op.pos + i / H::kHalf)) * op.inv_freq[i % H::kHalf]);
    }
    pos = op.pos, inv_freq = op.inv_freq;
    consumer_barrier();
  }
};

template <typename H>
__device__ __forceinline__ void load_tagged(HeadValues<H>& x, const uint64_t* from, uint32_t epoch, int lane) {
  constexpr int kN = H::kPerLane;
  TaggedPair pairs[kN];
  const auto address = [&](int i) { return from + lane * kN + i / (kN / 2) * H::kHalf + i % (kN / 2) * 2; };
  wait_for_pairs(address, epoch, pairs);
#pragma unroll
  for (int i = 0; i < kN; ++i) x.low[i] = pairs[i / 2].value(i % 2), x.high[i] = pairs[kN / 2 + i / 2].value(i % 2);
}

// Byte offsets in the scratch. Scores follow where the queries were; the results, 8 rows at a time, where both were.
template <typename H>
struct RowsScratch {
  static constexpr int kQuery = 0;                                                           // [16, kRow]
  static constexpr int kScores = 0;                                                          // float [8 warps, 16, 16]
  static constexpr int kWeights = kScores + kConsumerWarps * kGroupQueries * kTileKeys * 4;  // [16, 16 + 8]
  static constexpr int kKeep = kWeights + kGroupQueries * (kTileKeys + kRowPad) * 2;         // float [16]
  // Of layers whose rows are small enough: keys and values of the step's rows, beside the queries.
  static constexpr int kNew = kKeep + kGroupQueries * 4;  // [kRowsMax, 2, kRow]
  static_assert(H::kRotated > 0 || (kNew % 16 == 0 && kNew >= kGroupQueries * H::kRow * 2 &&
                                    kNew + kRowsMax * 4 * H::kRow <= kRowsScratch));
  static constexpr int kResults = 0;                                          // float [8, kDim]
  static constexpr int kFactors = 8 * H::kDim * 4;                            // float [splits, 16]
  static constexpr int kTop = kFactors + kRowsSplitsMax * kGroupQueries * 4;  // float [16]
  static constexpr int kTotal = kTop + kGroupQueries * 4;
  static constexpr int kEnd = kTotal + kGroupQueries * 4;
  static_assert(kEnd <= kRowsScratch && kGroupQueries * H::kRow * 2 <= kRowsScratch);
};

// Where the scratch keeps the key and value of a row of the step; null: only the cache does.
template <typename H>
__device__ __forceinline__ attention_t* new_row(uint8_t* scratch, int row) {
  if constexpr (H::kRotated > 0) return nullptr;
  return reinterpret_cast<attention_t*>(scratch + RowsScratch<H>::kNew) + row * 2 * H::kRow;
}

// The queries of the item, and the keys and values of the sequence's rows whose tile this CTA has.
template <typename H>
__device__ __forceinline__ void make_rows_heads(const AttentionInstruction& op, const StepRows& step,
                                                const RowsItem& item, const uint64_t* values, uint32_t epoch,
                                                const float2* rotations, uint8_t* scratch) {
  constexpr int kKinds = H::kRotated ? 1 : 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, queries = item.rows * op.group;
  attention_t* query = reinterpret_cast<attention_t*>(scratch + RowsScratch<H>::kQuery);
  const auto of_row = [&](const void* part, int row) {
    return reinterpret_cast<const uint64_t*>(part) + static_cast<int64_t>(row) * kChannelValues;
  };
  const HeadNormWeights<H> q_weights = head_weights<H>(op, 0, lane);
#pragma unroll 1
  for (int i = warp; i < queries; i += kConsumerWarps) {
    const int row = item.first + i / op.group, head = item.kv_head * op.group + i % op.group;
    HeadValues<H> x;
    load_tagged(x, of_row(op.q, row) + head * H::kDim, epoch, lane);
    store_query<H>(x, op.eps, q_weights, rotations + row * H::kHalf, query + i * H::kRow, lane);
  }
  int turn = queries;  // the warps after those of the queries
#pragma unroll 1
  for (int i = 0; i < step.count * kKinds; ++i) {
    const int row = i / kKinds;
    const bool value = i % kKinds == 1;
    if (step.see[row].x != item.sequence || !item.has(step.see[row].y)) continue;
    if (turn++ % kConsumerWarps != warp) continue;
    const HeadNormWeights<H> weights = head_weights<H>(op, op.group, lane);
    HeadValues<H> x;
    load_tagged(x, of_row(value ? op.v : op.k, row) + item.kv_head * H::kDim, epoch, lane);
    store_new_key_value<H>(x, op.kv, kv_offset(op.kv, item.sequence, step.see[row].y, item.kv_head), op.eps, weights,
                           rotations + row * H::kHalf, new_row<H>(scratch, row), value, lane);
  }
}

// Copies the step's own keys and values of this tile into it, from the scratch or from the cache.
template <typename H>
__device__ __forceinline__ void patch_tile(const AttentionInstruction& op, const StepRows& step, const RowsItem& item,
                                           int tile, uint8_t* scratch, uint8_t* stage) {
  constexpr int kVectors = H::kElements / 8, kRowVectors = H::kRow / 8;  // of 16 bytes
  const int i = threadIdx.x % 128, which = threadIdx.x / 128;            // keys, values
  bool any = false;
  for (int row = 0; row < step.count; ++row) {
    const int pos = step.see[row].y;
    if (step.see[row].x != item.sequence || pos / kTileKeys != tile) continue;
    any = true;
    if (i >= kVectors || (H::kRotated && which > 0)) continue;
    uint4 vector;
    if constexpr (H::kRotated > 0) {
      const int64_t offset = kv_offset(op.kv, item.sequence, pos, item.kv_head);
      vector = __ldcg(reinterpret_cast<const uint4*>(static_cast<const attention_t*>(op.kv.v) + offset) + i);
    } else {
      vector = reinterpret_cast<const uint4*>(new_row<H>(scratch, row) + which * H::kRow)[i];
    }
    reinterpret_cast<uint4*>(stage)[(which * kTileKeys + pos % kTileKeys) * kRowVectors + i] = vector;
  }
  if (!any) return;
  fence_before_bulk_copies();
  consumer_barrier();
}

// The scores [16, 16] of a tile over this warp's steps of depth.
template <typename H>
__device__ __forceinline__ void score_rows_tile(const uint8_t* stage, const uint32_t (&query)[H::kSteps][4],
                                                float* scores, int warp, int lane) {
  const attention_t* keys = reinterpret_cast<const attention_t*>(stage);
  float c[2][4] = {};
#pragma unroll
  for (int i = 0; i < H::kSteps; ++i) {
    uint32_t b[4];
    load_matrices(b, keys + (lane % 8 + lane / 16 * 8) * H::kRow + H::depth(warp, i) + lane / 8 % 2 * 8);
    multiply(c[0], query[i], b[0], b[1]);
    multiply(c[1], query[i], b[2], b[3]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* to = scores + (warp * kGroupQueries + lane / 4 + 8 * half) * kTileKeys + lane % 4 * 2;
    *reinterpret_cast<float2*>(to) = make_float2(c[0][2 * half], c[0][2 * half + 1]);
    *reinterpret_cast<float2*>(to + 8) = make_float2(c[1][2 * half], c[1][2 * half + 1]);
  }
}

// Thread t has key t % 16 of query row t / 16. `see`: of its row; a query row without a head sees nothing.
template <typename H>
__device__ __forceinline__ void softmax_rows_tile(uint8_t* scratch, SoftmaxRow& row, const int4& see, int base) {
  using L = RowsScratch<H>;
  const int key = threadIdx.x % kTileKeys, query = threadIdx.x / kTileKeys;
  const float* scores = reinterpret_cast<const float*>(scratch + L::kScores);
  float x = 0;
#pragma unroll
  for (int w = 0; w < kConsumerWarps; ++w) x += scores[w * kGroupQueries * kTileKeys + threadIdx.x];
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
  reinterpret_cast<attention_t*>(scratch + L::kWeights)[query * (kTileKeys + kRowPad) + key] =
      from_float<attention_t>(weight);
  if (key == 0) reinterpret_cast<float*>(scratch + L::kKeep)[query] = keep;
}

template <typename H>
__device__ __forceinline__ void accumulate_rows_values(const uint8_t* scratch, const uint8_t* stage,
                                                       float (&sum)[H::kColumns][4], int warp, int lane) {
  using L = RowsScratch<H>;
  constexpr int kPitch = kTileKeys + kRowPad;
  const attention_t* values =
      reinterpret_cast<const attention_t*>(stage) + (H::kRotated ? 0 : kTileKeys * H::kRow) + warp * (H::kColumns * 8);
  const float* keep = reinterpret_cast<const float*>(scratch + L::kKeep) + lane / 4;
  const float low = keep[0], high = keep[8];
  const uint8_t* weights = scratch + L::kWeights + (lane / 4 * kPitch + lane % 4 * 2) * 2;
  const auto word = [&](int offset) { return *reinterpret_cast<const uint32_t*>(weights + offset); };
  const uint32_t a[4] = {word(0), word(8 * kPitch * 2), word(16), word(8 * kPitch * 2 + 16)};
#pragma unroll
  for (int t = 0; t < H::kColumns; t += 2) {
    uint32_t b[4];
    load_matrices_transposed(b, values + lane % 16 * H::kRow + t * 8 + lane / 16 * 8);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[t + i][0] *= low, sum[t + i][1] *= low, sum[t + i][2] *= high, sum[t + i][3] *= high;
      multiply(sum[t + i], a, b[2 * i], b[2 * i + 1]);
    }
  }
}

template <typename H>
constexpr int kRowsPartialFloats = kGroupQueries* H::kDim + 2 * kGroupQueries;  // sums, maxima, totals

// Query rows 8 p .. 8 p + 7 of the scratch's results, as limbs of the next GEMV's input.
template <typename H>
__device__ __forceinline__ void store_results(const AttentionInstruction& op, const RowsItem& item, int p,
                                              const float* results, const LimbBuffer& limbs, uint32_t epoch) {
  constexpr int kTiles = H::kDim / kWeightTileCols;
  const Vector8 e(0);
#pragma unroll 1
  for (int i = threadIdx.x / 8; i < 8 * kTiles; i += kConsumerThreads / 8) {
    const int query = 8 * p + i / kTiles, row = item.first + query / op.group, head = query % op.group;
    const bool real = query < item.rows * op.group;
    const int tile = (item.kv_head * op.group + head) * kTiles + i % kTiles;
    const float* from = results + i / kTiles * H::kDim + i % kTiles * kWeightTileCols + e.column();
    float x[8];
    split(*reinterpret_cast<const float4*>(from), *reinterpret_cast<const float4*>(from + 8), x);
#pragma unroll
    for (int k = 0; k < 8; ++k) x[k] = as_flagged(x[k]);
    store_tile_limbs(limbs.row(real ? row : 0), tile, x, real);
    __syncwarp();
    if (real && threadIdx.x % 8 == 0) limbs.set_flag(tile, row, epoch);
  }
}

// How much each CTA's partial counts, [active, 16]. Warp w has query rows w and w + 8.
template <typename H>
__device__ __forceinline__ void weigh_partials(const RowsItem& item, const float* partials, float* factors) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int query = warp; query < kGroupQueries; query += kConsumerWarps) {
    const float* stats = partials + kGroupQueries * H::kDim + query;
    float top = -INFINITY, total = 0;
    for (int n = lane; n < item.active; n += 32) top = fmaxf(top, __ldcg(stats + n * kRowsPartialFloats<H>));
    top = warp_max(top);
    for (int n = lane; n < item.active; n += 32) {
      const float weight = top == -INFINITY ? 0.0f : exp2_fast(__ldcg(stats + n * kRowsPartialFloats<H>) - top);
      factors[n * kGroupQueries + query] = weight;
      total += weight * __ldcg(stats + n * kRowsPartialFloats<H> + kGroupQueries);
    }
    total = warp_sum(total);
    const float factor = total > 0 ? 1.0f / total : 0.0f;
    for (int n = lane; n < item.active; n += 32) factors[n * kGroupQueries + query] *= factor;
  }
}

// The last CTA of an item to finish adds up the partials of all.
template <typename H>
__device__ __forceinline__ void merge_rows_partials(const AttentionInstruction& op, const RowsItem& item,
                                                    const float* partials, uint8_t* scratch, const LimbBuffer& limbs,
                                                    uint32_t epoch) {
  using L = RowsScratch<H>;
  float *factors = reinterpret_cast<float*>(scratch + L::kFactors),
        *results = reinterpret_cast<float*>(scratch + L::kResults);
  weigh_partials<H>(item, partials, factors);
  consumer_barrier();
  for (int p = 0; 8 * p < item.rows * op.group; ++p) {
    for (int i = threadIdx.x; i < 8 * H::kDim / 4; i += kConsumerThreads) {
      const int query = 8 * p + i / (H::kDim / 4);
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
      for (int n = 0; n < item.active; ++n) {
        const float4 x =
            __ldcg(reinterpret_cast<const float4*>(partials + n * kRowsPartialFloats<H> + p * 8 * H::kDim + 4 * i));
        const float weight = factors[n * kGroupQueries + query];
        sum.x += weight * x.x, sum.y += weight * x.y, sum.z += weight * x.z, sum.w += weight * x.w;
      }
      reinterpret_cast<float4*>(results)[i] = sum;
    }
    consumer_barrier();
    store_results<H>(op, item, p, results, limbs, epoch);
    consumer_barrier();
  }
}

// Writes the results where this CTA has all keys of the item; else stores its partial.
template <typename H>
__device__ __forceinline__ void finish_rows_item(const AttentionInstruction& op, const RowsItem& item, uint8_t* scratch,
                                                 const SoftmaxRow& row, const float (&sum)[H::kColumns][4],
                                                 float* partial, int* counters, int* last, const LimbBuffer& limbs,
                                                 uint32_t epoch) {
  using L = RowsScratch<H>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float *tops = reinterpret_cast<float*>(scratch + L::kTop), *totals = reinterpret_cast<float*>(scratch + L::kTotal);
  if (threadIdx.x % kTileKeys == 0) {
    tops[threadIdx.x / kTileKeys] = row.top, totals[threadIdx.x / kTileKeys] = row.total;
  }
  consumer_barrier();
  float* partials = partial + static_cast<int64_t>(item.index) * item.splits * kRowsPartialFloats<H>;
  float* mine = partials + item.split * kRowsPartialFloats<H>;
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    if (8 * p >= item.rows * op.group) break;
    const int query = 8 * p + lane / 4;
    const float factor = item.active > 1 ? 1.0f : (totals[query] > 0 ? 1.0f / totals[query] : 0.0f);
    float* results = item.active > 1 ? mine + p * 8 * H::kDim : reinterpret_cast<float*>(scratch + L::kResults);
#pragma unroll
    for (int t = 0; t < H::kColumns; ++t) {
      const int e = warp * (H::kColumns * 8) + t * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(results + lane / 4 * H::kDim + e) =
          make_float2(sum[t][2 * p] * factor, sum[t][2 * p + 1] * factor);
    }
    if (item.active > 1) continue;
    consumer_barrier();
    store_results<H>(op, item, p, results, limbs, epoch);
    consumer_barrier();
  }
  if (item.active == 1) return;
  if (threadIdx.x < kGroupQueries) {
    mine[kGroupQueries * H::kDim + threadIdx.x] = tops[threadIdx.x];
    mine[kGroupQueries * H::kDim + kGroupQueries + threadIdx.x] = totals[threadIdx.x];
  }
  consumer_barrier();
  if (threadIdx.x == 0) {  // `inc` wraps to zero after active - 1
    int before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counters + item.index), "r"(item.active - 1)
                 : "memory");
    *last = before == item.active - 1;
  }
  consumer_barrier();
  if (*last) merge_rows_partials<H>(op, item, partials, scratch, limbs, epoch);
  consumer_barrier();
}

// The consumer warps.
template <typename H, typename Plan>
__device__ __forceinline__ void run_rows_attention(const AttentionInstruction& op, const StepRows& step,
                                                   const MegakernelWorkspace& w, uint32_t epoch,
                                                   const float2* rotations, const Pipeline<Plan>& pipeline,
                                                   const uint64_t* limbs_full, PipelineState<Plan>& state,
                                                   uint8_t* scratch, int* last, InstructionClock& clock) {
  using L = RowsScratch<H>;
  const LimbBuffer limbs(w.rows, LimbSource::kAttention, step.count);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (RowsItems items(step, op); items.more(); items.next()) {
    const RowsItem item = items.item();
    if (!item.any()) continue;
    const int queries = item.rows * op.group;
    make_rows_heads<H>(op, step, item, w.rows.values, epoch - 1, rotations, scratch);
    consumer_barrier();
    clock.input_ready();
    uint32_t fragments[H::kSteps][4];
    const attention_t* query = reinterpret_cast<const attention_t*>(scratch + L::kQuery);
#pragma unroll
    for (int i = 0; i < H::kSteps; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {  // the rows past the last were never written
        const int at = lane / 4 + k % 2 * 8;
        const attention_t* from = query + at * H::kRow + H::depth(warp, i) + lane % 4 * 2 + k / 2 * 8;
        fragments[i][k] = at < queries ? *reinterpret_cast<const uint32_t*>(from) : 0;
      }
    }
    consumer_barrier();
    const int mine = threadIdx.x / kTileKeys;
    const int4 see = mine < queries ? step.see[item.first + mine / op.group] : make_int4(0, 0, 1, 0);
    SoftmaxRow row;
    float sum[H::kColumns][4] = {};
    for (int tile = item.begin; tile < item.end; ++tile, state.next()) {
      uint8_t* stage = pipeline.at(state);
      pipeline.wait_full(state);
      barrier_wait(shared_address(limbs_full) + 8 * state.stage, state.phase);  // the limb warp keeps step
      patch_tile<H>(op, step, item, tile, scratch, stage);
      score_rows_tile<H>(stage, fragments, reinterpret_cast<float*>(scratch + L::kScores), warp, lane);
      consumer_barrier();
      softmax_rows_tile<H>(scratch, row, see, tile * kTileKeys);
      consumer_barrier();
      accumulate_rows_values<H>(scratch, stage, sum, warp, lane);
      pipeline.release(state);
    }
    consumer_barrier();  // the weights have been read
    finish_rows_item<H>(op, item, scratch, row, sum, static_cast<float*>(w.attention_partials), w.attention_counters,
                        last, limbs, epoch);
  }
}
#endif

}  // namespace gemma4::cuda
