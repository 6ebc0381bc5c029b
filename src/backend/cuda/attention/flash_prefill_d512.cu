// Attention of many rows at head size 512 (full layers): flash attention with warpgroup products. 512 float32 columns
// do not fit one warpgroup's registers, so two share 64 rows: each multiplies half of the depth of q k^T, they add
// their parts through shared memory, both compute the same softmax, and each keeps half of the output's columns. With a
// compressed cache one tile is read as V and, with the kept elements beside it, as K (KvCacheView). Softmax of the next
// tile overlaps the products of this one, as in attend_prefill.cu.
#include "backend/cuda/attention/flash_tile.cuh"
#include "backend/cuda/device/wgmma.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kDim = 512;
constexpr int kRows = 64;  // of the query tile
constexpr int kThreads = 256;
constexpr int kKeys = 32;
constexpr int kHalf = kDim / 2;
constexpr int kColumns = kHalf / 8;  // column tiles of a warpgroup
constexpr int kChunks = kDim / 8;    // of 8 elements
constexpr int kSteps = kHalf / 16;   // of depth, of a warpgroup
constexpr int kScores = kKeys / 8;

template <int kRotated_>
struct Shape {
  static constexpr int kRotated = kRotated_;
  static constexpr int kElements = kDim + 2 * kRotated;
  static constexpr int kTile = kKeys * kElements;
  static constexpr int kTiles = kRotated ? 3 : 4;  // three of both, or two of keys and two of values
  static constexpr size_t kExchange = sizeof(float4) * (kThreads / 32) * kScores * 32;
  static constexpr size_t kShared =
      sizeof(attend_t) * (kRows * kDim + kTiles * kTile) + kExchange + sizeof(int4) * kRows;
  static_assert(kShared <= 227 * 1024 && kRotated % 16 == 0);

  // Where step `step` of a half's depth begins in a key row, in chunks: V's elements that stand for K's, then the kept.
  static constexpr int key_chunk(int half, int step) {
    const int whole = (kHalf - kRotated) / 16;  // steps over V
    return step < whole ? half * (kChunks / 2) + kRotated / 8 + 2 * step
                        : kChunks + half * (kRotated / 8) + 2 * (step - whole);
  }
};

// Queries in the order in which the steps of both halves meet them. Compressed: K's norm weight goes into the elements
// that meet V.
template <typename S>
__device__ __forceinline__ void load_query(attend_t* to, const AttendCall& call, const KvCacheView& kv, int token0,
                                           int head0, int group) {
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int m = i % kRows, chunk = i / kRows, token = token0 + m / group;
    const int half = chunk / (kChunks / 2), within = chunk % (kChunks / 2), whole = (kHalf - S::kRotated) / 8;
    const int e = half * kHalf + (within < whole ? S::kRotated + within * 8 : (within - whole) * 8);
    uint4 value = make_uint4(0, 0, 0, 0);
    if (token < call.count) {
      const attend_t* q = static_cast<const attend_t*>(call.q) + token * call.q_stride + (head0 + m % group) * kDim + e;
      value = *reinterpret_cast<const uint4*>(q);
      if (S::kRotated > 0 && within < whole) {
        float x[8], w[8];
        load8(q, x);
        load8(kv.k_norm + e, w);
        value = make_uint4(pack_attend(x[0] * w[0], x[1] * w[1]), pack_attend(x[2] * w[2], x[3] * w[3]),
                           pack_attend(x[4] * w[4], x[5] * w[5]), pack_attend(x[6] * w[6], x[7] * w[7]));
      }
    }
    *reinterpret_cast<uint4*>(to + chunk_at<kRows>(m, chunk)) = value;
  }
}

// Starts the copy of keys base .. base+31 into `to`: a warp takes 8 keys and half of their chunks.
template <typename S>
__device__ __forceinline__ void fetch(attend_t* to, const attend_t* from, const KvCacheView& kv, const Run& run,
                                      int kv_head, int base) {
  constexpr int kPart = S::kElements / 8 / 2;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = warp % 4 * 8 + lane % 8, pos = base + row, first = warp / 4 * kPart;
  const bool valid = pos >= run.first && pos <= run.last;
  const int64_t at = valid ? kv_place(kv, run.seq, pos, kv_head) : 0;
#pragma unroll
  for (int chunk = lane / 8; chunk < kPart; chunk += 4) {
    copy16_async(to + chunk_at<kKeys>(row, first + chunk), from + at + (first + chunk) * 8, valid);
  }
}

// Starts this warpgroup's part of scores [64, kKeys]: its half of the depth.
template <typename S>
__device__ __forceinline__ void start_scores(float (&c)[kScores][4], const attend_t* q, const attend_t* keys,
                                             int half) {
  const uint64_t a = tile_descriptor(q, kRows * 16, 128) + half * (kChunks / 2) * kRows;
  const uint64_t b = tile_descriptor(keys, kKeys * 16, 128);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    multiply_shared(c, a + step * 2 * kRows, b + S::key_chunk(half, step) * kKeys, step > 0);
  }
  group_commit();
}

// Starts sum += weights * values, for this warpgroup's columns.
__device__ __forceinline__ void start_sums(float (&sum)[kColumns][4], const uint32_t (&weights)[kKeys / 16][4],
                                           const attend_t* values, int half) {
  const uint64_t b = tile_descriptor(values, 128, kKeys * 16) + half * (kChunks / 2) * kKeys;
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) multiply_registers(sum, weights[step], b + step * 16);
  group_commit();
}

__device__ __forceinline__ void pack(uint32_t (&weights)[kKeys / 16][4], const float (&c)[kScores][4]) {
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    const auto &low = c[2 * step], &high = c[2 * step + 1];
    weights[step][0] = pack_attend(low[0], low[1]);
    weights[step][1] = pack_attend(low[2], low[3]);
    weights[step][2] = pack_attend(high[0], high[1]);
    weights[step][3] = pack_attend(high[2], high[3]);
  }
}

// Adds the other warpgroup's part. A lane reads what the same lane of the other warp wrote.
__device__ __forceinline__ void exchange(float (&c)[kScores][4], float4* parts) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float4* mine = parts + warp * 32 * kScores + lane;
  const float4* other = parts + (warp ^ 4) * 32 * kScores + lane;
#pragma unroll
  for (int t = 0; t < kScores; ++t) mine[t * 32] = make_float4(c[t][0], c[t][1], c[t][2], c[t][3]);
  asm volatile("bar.sync %0, 64;" ::"r"(warp % 4 + 1) : "memory");  // the two warps of these 16 rows
#pragma unroll
  for (int t = 0; t < kScores; ++t) {
    const float4 x = other[t * 32];
    c[t][0] += x.x, c[t][1] += x.y, c[t][2] += x.z, c[t][3] += x.w;
  }
}

template <typename S>
struct Tiles {
  attend_t *query, *tiles;  // [kRows, kDim], [kTiles, kTile]
  float4* parts;            // [8 warps, kScores, 32]
  int4* see;                // [tokens]

  __device__ attend_t* keys(int tile) const { return tiles + (S::kRotated ? tile % 3 : tile % 2) * S::kTile; }
  __device__ attend_t* values(int tile) const { return tiles + (S::kRotated ? tile % 3 : 2 + tile % 2) * S::kTile; }
};

template <typename S>
__device__ __forceinline__ void attend_run(const Tiles<S>& s, const KvCacheView& kv, const Run& run, int kv_head,
                                           bool whole, RowState (&state)[2], float (&sum)[kColumns][4]) {
  const int begin = run.first / kKeys, end = run.last / kKeys + 1, half = threadIdx.x / 128;
  const auto bring_keys = [&](int tile) {  // and, compressed, values
    if (tile >= end) return;
    fetch<S>(s.keys(tile), static_cast<const attend_t*>(S::kRotated ? kv.v : kv.k), kv, run, kv_head, tile * kKeys);
  };
  const auto bring_values = [&](int tile) {
    if (S::kRotated || tile >= end) return;
    fetch<S>(s.values(tile), static_cast<const attend_t*>(kv.v), kv, run, kv_head, tile * kKeys);
  };
  const auto masked = [&](int tile) {
    return !whole || tile * kKeys < run.all_first || tile * kKeys + kKeys - 1 > run.all_last;
  };
  bring_keys(begin);
  copy_commit();
  bring_keys(begin + 1), bring_values(begin);
  copy_commit();
  copy_wait<1>();
  fence_async();
  __syncthreads();
  float c[kScores][4];
  uint32_t weights[kKeys / 16][4];
  group_fence();
  start_scores<S>(c, s.query, s.keys(begin), half);
  group_wait<0>();
  pin(c);
  exchange(c, s.parts);
  soften(c, state, begin * kKeys, masked(begin));  // nothing to rescale yet: what it replaces is zero, or another run's
  pack(weights, c);
  int tile = begin;
  for (; tile + 1 < end; ++tile) {
    copy_wait<0>();
    fence_async();
    __syncthreads();
    pin(sum);
    group_fence();
    start_scores<S>(c, s.query, s.keys(tile + 1), half);
    start_sums(sum, weights, s.values(tile), half);
    bring_keys(tile + 2), bring_values(tile + 1);
    copy_commit();
    group_wait<1>();
    pin(c);
    exchange(c, s.parts);
    const float2 keep = soften(c, state, (tile + 1) * kKeys, masked(tile + 1));
    group_wait<0>();
    pin(sum);
    if (__any_sync(0xffffffffu, keep.x != 1.0f || keep.y != 1.0f)) {
#pragma unroll
      for (int t = 0; t < kColumns; ++t) {
        sum[t][0] *= keep.x, sum[t][1] *= keep.x;
        sum[t][2] *= keep.y, sum[t][3] *= keep.y;
      }
    }
    pack(weights, c);
  }
  copy_wait<0>();
  fence_async();
  __syncthreads();
  pin(sum);
  group_fence();
  start_sums(sum, weights, s.values(tile), half);
  group_wait<0>();
  pin(sum);
  __syncthreads();
}

// Grid: (KV heads, query tiles), the last tile of queries first.
template <typename S>
__global__ void __launch_bounds__(kThreads, 1) wide_kernel(AttendCall call, KvCacheView kv) {
  extern __shared__ __align__(128) char memory[];
  Tiles<S> s;
  s.query = reinterpret_cast<attend_t*>(memory);
  s.tiles = s.query + kRows * kDim;
  s.parts = reinterpret_cast<float4*>(s.tiles + S::kTiles * S::kTile);
  s.see = reinterpret_cast<int4*>(s.parts + kThreads / 32 * kScores * 32);
  grid_release();
  grid_wait();
  const int group = call.q_heads / kv.heads, kv_head = blockIdx.x;
  const int token0 = (gridDim.y - 1 - blockIdx.y) * (kRows / group);
  const int tokens = min(kRows / group, call.count - token0);
  for (int i = threadIdx.x; i < tokens; i += kThreads) s.see[i] = reinterpret_cast<const int4*>(call.rows)[token0 + i];
  load_query<S>(s.query, call, kv, token0, kv_head * group, group);
  fence_async();
  __syncthreads();
  RowState state[2] = {{1, 0, -INFINITY, 0.0f}, {1, 0, -INFINITY, 0.0f}};
  float sum[kColumns][4] = {};
  const int lane = threadIdx.x % 32, m0 = threadIdx.x / 32 % 4 * 16 + lane / 4;
  for (int begin = 0; begin < tokens;) {
    const Run run = next_run(s.see, begin, tokens);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = (m0 + i * 8) / group;
      const bool mine = token >= run.begin && token < run.end;
      state[i].first = mine ? s.see[token].z : 1;
      state[i].last = mine ? s.see[token].w : 0;
    }
    attend_run<S>(s, kv, run, kv_head, run.begin == 0 && run.end == tokens, state, sum);
    begin = run.end;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int m = m0 + i * 8, token = m / group;
    const float total = quad_sum(state[i].total), factor = total > 0 ? 1.0f / total : 0.0f;
    if (token >= tokens) continue;
    bf16* out = static_cast<bf16*>(call.out) + (token0 + token) * call.out_stride +
                (kv_head * group + m % group) * kDim + threadIdx.x / 128 * kHalf;
#pragma unroll
    for (int t = 0; t < kColumns; ++t) {
      const float* x = sum[t] + 2 * i;
      *reinterpret_cast<uint32_t*>(out + t * 8 + lane % 4 * 2) = pack_bf16x2(x[0] * factor, x[1] * factor);
    }
  }
}

template <typename S>
void run(cudaStream_t stream, const AttendCall& call, const KvCacheView& kv) {
  static AllowedOn allowed;
  allow_shared_once(wide_kernel<S>, S::kShared, allowed);
  const int tokens = kRows / (call.q_heads / kv.heads);
  launch(stream, dim3(kv.heads, (call.count + tokens - 1) / tokens), kThreads, S::kShared, wide_kernel<S>, call, kv);
}

}  // namespace

void attend_prefill_wide(cudaStream_t stream, const AttendCall& call, const KvCacheView& kv) {
  if (kv.rotated) return run<Shape<64>>(stream, call, kv);
  run<Shape<0>>(stream, call, kv);
}

}  // namespace gemma4::cuda
