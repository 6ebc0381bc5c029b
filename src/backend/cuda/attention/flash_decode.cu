// flash_decode: attention of a few rows over long caches, as split-K flash decoding. A CTA takes one KV head of one row
// and a range of its keys. It multiplies all query heads of the GQA group (2 or 8, padded to 16) on the tensor cores,
// so each key and value is read once. HBM bandwidth bounds it: tiles of keys stream through shared memory in several
// stages. The splits write partial results to device memory, and the last CTA of a head merges them. The grid depends
// only on the number of rows, and a CTA without keys ends at once, so one captured graph serves every length.
#include <algorithm>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/kv_cache.cuh"
#include "backend/cuda/device/activation.cuh"
#include "backend/cuda/device/cp_async.cuh"
#include "backend/cuda/device/element.cuh"
#include "backend/cuda/device/mma.cuh"
#include "backend/cuda/device/reduce.cuh"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

using bf16 = __nv_bfloat16;

constexpr int kGroup = 16;    // query heads of a KV head, padded
constexpr int kTilesMin = 2;  // tiles of a CTA before the keys are split over more CTAs
constexpr int kPad = 8;       // elements that keep the rows of a fragment in different banks

// kRotated 0: keys and values are stored apart. Otherwise one row of kDim + 2 * kRotated is both (KvCacheView).
template <int kDim_, int kRotated_, int kKeys_, int kStages_, int kWarps_>
struct Shape {
  static constexpr int kDim = kDim_, kRotated = kRotated_, kKeys = kKeys_, kStages = kStages_, kWarps = kWarps_;
  static constexpr int kRow = kDim + 2 * kRotated + kPad;          // elements of a tile row
  static constexpr int kTile = kKeys * kRow * (kRotated ? 1 : 2);  // elements of a stage
  static constexpr int kKeyTiles = kKeys / 8;
  static constexpr int kDepthSplits = kWarps / kKeyTiles;  // warps that divide the depth of one tile of 8 keys
  static constexpr int kScoreRow = kKeys + 4;
  static constexpr size_t kQuery = sizeof(attention_t) * kGroup * kRow;
  static constexpr size_t kWeights = sizeof(attention_t) * kGroup * (kKeys + kPad);
  static constexpr size_t kScores = sizeof(float) * kDepthSplits * kGroup * kScoreRow;
  static constexpr size_t kStats = sizeof(float) * 3 * kGroup;
  static constexpr size_t kShared = kQuery + kWeights + kScores + kStats + sizeof(attention_t) * kStages * kTile;
  static_assert(kWarps % kKeyTiles == 0 && kDim / kWarps % 16 == 0);
};

template <typename S>
struct Shared {
  attention_t* query;         // [16, kRow]
  attention_t* weights;       // [16, kKeys + kPad]
  float* scores;              // [kDepthSplits, 16, kScoreRow]
  float *top, *total, *keep;  // [16]
  attention_t* tiles;         // [kStages, kTile]

  __device__ explicit Shared(char* at) {
    tiles = reinterpret_cast<attention_t*>(at);
    query = tiles + S::kStages * S::kTile;
    at = reinterpret_cast<char*>(query) + S::kQuery;
    weights = reinterpret_cast<attention_t*>(at);
    at += S::kWeights;
    scores = reinterpret_cast<float*>(at);
    at += S::kScores;
    top = reinterpret_cast<float*>(at);
    total = top + kGroup;
    keep = total + kGroup;
  }
};

// The offset of this lane's key of tile `tile` (keys tile * kKeys ..), or -1 outside the row's interval. A warp takes
// kKeys / kWarps keys of a tile.
template <typename S>
__device__ __forceinline__ int64_t key_offset(const KvCacheView& kv, const int4& row_mask, int kv_head, int tile) {
  constexpr int kPerWarp = S::kKeys / S::kWarps;
  static_assert(kPerWarp <= 32);
  const int mine = tile * S::kKeys + threadIdx.x / 32 * kPerWarp + threadIdx.x % 32 % kPerWarp;
  return mine >= row_mask.z && mine <= row_mask.w ? kv_offset(kv, row_mask.x, mine, kv_head) : -1;
}

// Starts the copy of tile `tile` into its stage. Each lane passes the offset of one key (key_offset). Positions outside
// the row's interval become zeros.
template <typename S>
__device__ __forceinline__ void fetch(const Shared<S>& s, const KvCacheView& kv, int64_t offset, int tile) {
  constexpr int kPerWarp = S::kKeys / S::kWarps;
  constexpr int kVectors = (S::kDim + 2 * S::kRotated) / 8;  // of 16 bytes in a row
  const int lane = threadIdx.x % 32, key0 = threadIdx.x / 32 * kPerWarp;
  attention_t* to = s.tiles + tile % S::kStages * S::kTile + key0 * S::kRow;
#pragma unroll
  for (int i = 0; i < kPerWarp; ++i, to += S::kRow) {
    const int64_t at = __shfl_sync(0xffffffffu, offset, i);
    const bool valid = at >= 0;
#pragma unroll
    for (int vec = lane; vec < kVectors; vec += 32) {
      copy16_async(to + vec * 8, static_cast<const attention_t*>(kv.v) + (valid ? at : 0) + vec * 8, valid);
      if constexpr (!S::kRotated) {
        copy16_async(to + S::kKeys * S::kRow + vec * 8,
                     static_cast<const attention_t*>(kv.k) + (valid ? at : 0) + vec * 8, valid);
      }
    }
  }
}

// Loads the queries of the group. For a compressed cache a row is: kDim elements that are multiplied by V (times K's
// norm weight, zero where the cache keeps K), then those that are multiplied by the kept elements of K. Rows past the
// group are zeros.
template <typename S>
__device__ __forceinline__ void load_query(const Shared<S>& s, const attention_t* q, const KvCacheView& kv, int group) {
  constexpr int kThreads = S::kWarps * 32, kVectors = S::kDim / 8, kHalf = S::kDim / 2;
  const uint4 zero = make_uint4(0, 0, 0, 0);
  for (int i = threadIdx.x; i < group * kVectors; i += kThreads) {
    const int head = i / kVectors, e = i % kVectors * 8;
    const uint4 raw = *reinterpret_cast<const uint4*>(q + head * S::kDim + e);
    attention_t* to = s.query + head * S::kRow;
    if constexpr (S::kRotated == 0) {
      *reinterpret_cast<uint4*>(to + e) = raw;
    } else if (e % kHalf < S::kRotated) {
      *reinterpret_cast<uint4*>(to + S::kDim + (e < kHalf ? 0 : S::kRotated) + e % kHalf) = raw;
      *reinterpret_cast<uint4*>(to + e) = zero;
    } else {
      float x[8], w[8];
      load8(q + head * S::kDim + e, x);
      load8(kv.k_norm + e, w);
#pragma unroll
      for (int n = 0; n < 8; ++n) x[n] *= w[n];
      store8(to + e, x);
    }
  }
  for (int i = threadIdx.x; i < (kGroup - group) * (S::kRow / 8); i += kThreads) {
    reinterpret_cast<uint4*>(s.query + group * S::kRow)[i] = zero;
  }
}

// Scores of the keys of a stage: a warp takes 8 keys and one split of the depth.
template <typename S>
__device__ __forceinline__ void compute_scores(const Shared<S>& s, const attention_t* keys) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int key_tile = warp % S::kKeyTiles, split = warp / S::kKeyTiles;
  constexpr int kSteps = (S::kDim + 2 * S::kRotated) / 32;  // of 32 elements
  float c[2][4] = {};
#pragma unroll
  for (int i = 0; i < (kSteps + S::kDepthSplits - 1) / S::kDepthSplits; ++i) {
    const int step = i * S::kDepthSplits + split;
    if (step >= kSteps) break;
    if constexpr (S::kRotated % 32 == 0 && S::kRotated > 0) {  // the query is zero there
      if (step * 32 < S::kDim && step * 32 % (S::kDim / 2) < S::kRotated) continue;
    }
    uint32_t b[4], a[4];
    load_matrices(b, keys + (key_tile * 8 + lane % 8) * S::kRow + step * 32 + lane / 8 * 8);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      load_matrices(a, s.query + lane % 16 * S::kRow + step * 32 + half * 16 + lane / 16 * 8);
      multiply(c[half], a, b[2 * half], b[2 * half + 1]);
    }
  }
  float* to = s.scores + (split * kGroup + lane / 4) * S::kScoreRow + key_tile * 8 + lane % 4 * 2;
  to[0] = c[0][0] + c[1][0], to[1] = c[0][1] + c[1][1];
  to += 8 * S::kScoreRow;
  to[0] = c[0][2] + c[1][2], to[1] = c[0][3] + c[1][3];
}

// Online softmax over the scores of a stage: a warp for each query head.
template <typename S>
__device__ __forceinline__ void online_softmax(const Shared<S>& s, const int4& row_mask, int group, int base) {
  const int lane = threadIdx.x % 32;
  constexpr int kPer = S::kKeys / 32;
  for (int head = threadIdx.x / 32; head < group; head += S::kWarps) {
    float x[kPer];
    float top = s.top[head];
    const float before = top;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int key = lane + 32 * i;
      x[i] = 0;
      for (int n = 0; n < S::kDepthSplits; ++n) x[i] += s.scores[(n * kGroup + head) * S::kScoreRow + key];
      x[i] = base + key >= row_mask.z && base + key <= row_mask.w ? x[i] * kLog2e : -INFINITY;
      top = fmaxf(top, x[i]);
    }
    top = warp_max(top);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const float weight = top == -INFINITY ? 0.0f : exp2_fast(x[i] - top + kWeightLift);
      s.weights[head * (S::kKeys + kPad) + lane + 32 * i] = from_float<attention_t>(weight);
      sum += weight;
    }
    sum = warp_sum(sum);
    __syncwarp();  // every lane has read top
    if (lane == 0) {
      const float keep = before == -INFINITY ? 0.0f : exp2_fast(before - top);
      s.keep[head] = keep;
      s.top[head] = top;
      s.total[head] = s.total[head] * keep + sum;
    }
  }
}

// sum = sum * keep + weights * values, for the warp's kDim / kWarps columns.
template <typename S, int kTiles>
__device__ __forceinline__ void accumulate(const Shared<S>& s, const attention_t* values, float (&sum)[kTiles][4]) {
  const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * (S::kDim / S::kWarps);
  const float keep0 = s.keep[lane / 4], keep1 = s.keep[lane / 4 + 8];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    sum[t][0] *= keep0, sum[t][1] *= keep0;
    sum[t][2] *= keep1, sum[t][3] *= keep1;
  }
#pragma unroll
  for (int step = 0; step < S::kKeys / 16; ++step) {
    uint32_t a[4];
    load_matrices(a, s.weights + lane % 16 * (S::kKeys + kPad) + step * 16 + lane / 16 * 8);
#pragma unroll
    for (int t = 0; t < kTiles; t += 2) {
      uint32_t b[4];
      load_matrices_transposed(b, values + (step * 16 + lane % 16) * S::kRow + column + t * 8 + lane / 16 * 8);
      multiply(sum[t], a, b[0], b[1]);
      multiply(sum[t + 1], a, b[2], b[3]);
    }
  }
}

struct Split {
  float* partial;  // [rows, kv heads, splits]: sums [group, kDim], then maxima [16] and totals [16]
  int* arrived;    // [rows, kv heads], zero between launches
  int splits;
};

template <typename S>
__host__ __device__ constexpr int64_t partial_floats(int group) {
  return int64_t{group} * S::kDim + 2 * kGroup;
}

// Merges the splits of (row, KV head): out = sum of the partials, each weighted by exp2(its maximum - the largest one).
template <typename S>
__device__ void merge(const Shared<S>& s, const float* partials, int active, bf16* out, int group) {
  const int lane = threadIdx.x % 32;
  const int64_t stride = partial_floats<S>(group);
  float* weights = reinterpret_cast<float*>(s.tiles);  // [active, group]; the tiles are no longer needed
  for (int head = threadIdx.x / 32; head < group; head += S::kWarps) {
    const float* stats = partials + group * S::kDim + head;
    float top = -INFINITY, total = 0;
    for (int n = lane; n < active; n += 32) top = fmaxf(top, stats[n * stride]);
    top = warp_max(top);
    for (int n = lane; n < active; n += 32) {
      const float weight = top == -INFINITY ? 0.0f : exp2_fast(stats[n * stride] - top);
      weights[n * group + head] = weight;
      total += weight * stats[n * stride + kGroup];
    }
    total = warp_sum(total);
    const float factor = total > 0 ? 1.0f / total : 0.0f;
    for (int n = lane; n < active; n += 32) weights[n * group + head] *= factor;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < group * S::kDim / 4; i += S::kWarps * 32) {
    const int head = i / (S::kDim / 4);
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int n = 0; n < active; ++n) {
      const float4 x = *reinterpret_cast<const float4*>(partials + n * stride + 4 * i);
      const float weight = weights[n * group + head];
      sum.x += weight * x.x, sum.y += weight * x.y, sum.z += weight * x.z, sum.w += weight * x.w;
    }
    *reinterpret_cast<uint2*>(out + 4 * i) = make_uint2(pack_bf16x2(sum.x, sum.y), pack_bf16x2(sum.z, sum.w));
  }
}

template <typename S, int kTiles>
__device__ void finish(const Shared<S>& s, const float (&sum)[kTiles][4], const Split& split, int active, bf16* out,
                       int group) {
  const int lane = threadIdx.x % 32, column = threadIdx.x / 32 * (S::kDim / S::kWarps);
  const int64_t cell = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  float* partials = split.partial + cell * split.splits * partial_floats<S>(group);
  float* partial = partials + blockIdx.x * partial_floats<S>(group);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int head = lane / 4 + half * 8;
    if (head >= group) continue;
    const float factor = active > 1 ? 1.0f : (s.total[head] > 0 ? 1.0f / s.total[head] : 0.0f);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int e = column + t * 8 + lane % 4 * 2;
      const float x = sum[t][2 * half] * factor, y = sum[t][2 * half + 1] * factor;
      if (active == 1) {
        *reinterpret_cast<uint32_t*>(out + head * S::kDim + e) = pack_bf16x2(x, y);
      } else {
        *reinterpret_cast<float2*>(partial + head * S::kDim + e) = make_float2(x, y);
      }
    }
  }
  if (active == 1) return;
  for (int head = threadIdx.x; head < group; head += S::kWarps * 32) {
    partial[group * S::kDim + head] = s.top[head];
    partial[group * S::kDim + kGroup + head] = s.total[head];
  }
  __shared__ int last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(split.arrived + cell, 1) == active - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) split.arrived[cell] = 0;
  merge<S>(s, partials, active, out, group);
}

// Grid: (splits, KV heads, rows). Rows and page tables are read before grid_wait(), since no kernel of a pass writes
// them. A CTA without keys ends before grid_wait(), but every row and KV head has a CTA that waits.
template <typename S>
__global__ void __launch_bounds__(S::kWarps * 32) flash_decode_kernel(AttentionCall call, KvCacheView kv, Split split) {
  extern __shared__ __align__(16) char memory[];
  const Shared<S> s(memory);
  grid_release();
  const int row = blockIdx.z, kv_head = blockIdx.y, group = call.q_heads / kv.heads;
  const int4 row_mask = reinterpret_cast<const int4*>(call.rows)[row];
  const int first = row_mask.z / S::kKeys, tiles = max(row_mask.w / S::kKeys - first + 1, 1);
  const int each = max((tiles + split.splits - 1) / split.splits, kTilesMin), active = (tiles + each - 1) / each;
  if (static_cast<int>(blockIdx.x) >= active) return;
  const int begin = first + blockIdx.x * each, end = min(begin + each, first + tiles);
  int64_t offsets[S::kStages];  // one more than is used, since some shapes have a single stage
#pragma unroll
  for (int i = 0; i < S::kStages - 1; ++i) {
    offsets[i] = begin + i < end ? key_offset<S>(kv, row_mask, kv_head, begin + i) : -1;
  }
  grid_wait();
#pragma unroll
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (begin + i < end) fetch<S>(s, kv, offsets[i], begin + i);
    copy_commit();
  }
  load_query<S>(s, static_cast<const attention_t*>(call.q) + row * call.q_stride + kv_head * group * S::kDim, kv,
                group);
  for (int i = threadIdx.x; i < kGroup; i += S::kWarps * 32) s.top[i] = -INFINITY, s.total[i] = 0, s.keep[i] = 0;
  for (int i = threadIdx.x; i < kGroup * (S::kKeys + kPad); i += S::kWarps * 32)
    s.weights[i] = from_float<attention_t>(0);
  constexpr int kTiles = S::kDim / S::kWarps / 8;
  float sum[kTiles][4] = {};
  for (int tile = begin; tile < end; ++tile) {
    const int next = tile + S::kStages - 1;
    if (next < end) fetch<S>(s, kv, key_offset<S>(kv, row_mask, kv_head, next), next);
    copy_commit();
    copy_wait<S::kStages - 1>();
    __syncthreads();
    const attention_t* values = s.tiles + tile % S::kStages * S::kTile;
    compute_scores<S>(s, S::kRotated ? values : values + S::kKeys * S::kRow);
    __syncthreads();
    online_softmax<S>(s, row_mask, group, tile * S::kKeys);
    __syncthreads();
    accumulate<S>(s, values, sum);
    __syncthreads();
  }
  bf16* out = static_cast<bf16*>(call.out) + row * call.out_stride + kv_head * group * S::kDim;
  finish<S>(s, sum, split, active, out, group);
}

// For devices with about 200 KB of shared memory for a CTA, and for those with 99 KB.
using Sliding = Shape<256, 0, 32, 3, 4>;
using Full = Shape<512, 64, 64, 2, 8>;
using Plain = Shape<512, 0, 32, 2, 4>;
using SlidingSmall = Shape<256, 0, 32, 2, 4>;
using FullSmall = Shape<512, 64, 32, 1, 4>;
using PlainSmall = Shape<512, 0, 32, 1, 4>;
constexpr size_t kSharedMax = std::max({Sliding::kShared, Full::kShared, Plain::kShared});
constexpr size_t kSharedMin = std::max({SlidingSmall::kShared, FullSmall::kShared, PlainSmall::kShared});
static_assert(kSharedMax <= (227 << 10) && kSharedMin <= (99 << 10));

template <typename S>
void run(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv, const AttentionWorkspace& workspace,
         int ctas) {
  const int cells = kv.heads * call.count, group = call.q_heads / kv.heads;
  const int splits = std::max(1, std::min(64, ctas / cells));
  CHECK(cells <= kAttentionCounters);
  CHECK(splits == 1 || cells * splits * partial_floats<S>(group) * 4 <= kAttentionPartialBytes);
  static AllowedOn allowed;
  const auto kernel = flash_decode_kernel<S>;
  allow_shared_once(kernel, S::kShared, allowed);
  launch(stream, dim3(splits, kv.heads, call.count), S::kWarps * 32, S::kShared, kernel, call, kv,
         Split{workspace.partial, workspace.counters, splits});
}

}  // namespace

bool flash_decode_fits(const AttentionCall& call, const KvCacheView& kv, const AttentionWorkspace& workspace) {
  const bool aligned = reinterpret_cast<uintptr_t>(call.out) % 16 == 0 && call.out_stride % 8 == 0 &&
                       reinterpret_cast<uintptr_t>(call.q) % 16 == 0 && call.q_stride % 8 == 0;
  const bool known = kv.dim == 256 ? kv.rotated == 0 : kv.dim == 512 && (kv.rotated == 0 || kv.rotated == 64);
  return known && aligned && call.q_heads / kv.heads <= kGroup && kv.heads * call.count <= kAttentionCounters &&
         workspace.shared_bytes_max >= static_cast<int64_t>(kSharedMin);
}

void flash_decode(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv,
                  const AttentionWorkspace& workspace) {
  const int sms = workspace.sms;
  const bool large = workspace.shared_bytes_max >= static_cast<int64_t>(kSharedMax);
  if (kv.dim == 256) {
    large ? run<Sliding>(stream, call, kv, workspace, 2 * sms) : run<SlidingSmall>(stream, call, kv, workspace, sms);
  } else if (kv.rotated) {
    large ? run<Full>(stream, call, kv, workspace, sms) : run<FullSmall>(stream, call, kv, workspace, sms);
  } else {
    large ? run<Plain>(stream, call, kv, workspace, sms) : run<PlainSmall>(stream, call, kv, workspace, sms);
  }
}

}  // namespace gemma4::cuda
