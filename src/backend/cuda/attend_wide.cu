// Attention of many rows at head size 512 (full layers): flash attention with mma.sync. 512 float32 columns do not fit
// one warp's registers, so two warps share 16 rows: each multiplies half of the depth of q k^T, they add their parts
// through shared memory, both compute the same softmax, and each keeps half of the output's columns. With a compressed
// cache one tile is read as V and, with the kept elements beside it, as K (KvView).
#include "backend/cuda/attend_tile.cuh"
#include "backend/cuda/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kDim = 512;
constexpr int kRows = 64;  // of the query tile
constexpr int kWarps = 8;
constexpr int kKeys = 32;
constexpr int kHalf = kDim / 2;
constexpr int kColumns = kHalf / 8;  // column tiles of a warp
constexpr int kScores = kKeys / 8;

template <int kRotated_>
struct Shape {
  static constexpr int kRotated = kRotated_;
  static constexpr int kElements = kDim + 2 * kRotated;
  static constexpr int kRow = kElements + kPad;
  static constexpr int kTile = kKeys * kRow;
  static constexpr int kStages = kRotated ? 3 : 2;
  static constexpr int kParts = kRotated ? 1 : 2;  // keys and values apart
  static constexpr size_t kExchange = sizeof(float) * kWarps * 32 * kScores * 4;
  static constexpr size_t kShared =
      sizeof(bf16) * (kRows * kRow + kStages * kParts * kTile) + kExchange + sizeof(int4) * kRows;
};

// Queries of the tile. Compressed: K's norm weight goes into the elements that meet V; where K's own are kept, the
// first kDim are zero and the kept ones follow.
template <typename S>
__device__ __forceinline__ void load_wide(bf16* to, const AttendCall& call, const KvView& kv, int token0, int head0,
                                          int group) {
  load_queries<kRows, kDim, S::kRow>(to, call, token0, head0, group);
  if constexpr (S::kRotated > 0) {
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * kDim; i += blockDim.x) {
      const int m = i / kDim, e = i % kDim, r = e % kHalf;
      bf16* row = to + m * S::kRow;
      if (r < S::kRotated) {
        row[kDim + (e < kHalf ? 0 : S::kRotated) + r] = row[e];
        row[e] = __float2bfloat16_rn(0.0f);
      } else {
        row[e] = __float2bfloat16_rn(to_float(row[e]) * kv.k_norm[e]);
      }
    }
  }
}

// The warp's part of scores [16, kKeys]: its half of the depth.
template <typename S>
__device__ __forceinline__ void score(float (&c)[kScores][4], const bf16* q, const bf16* keys, int half) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int t = 0; t < kScores; ++t) c[t][0] = c[t][1] = c[t][2] = c[t][3] = 0;
  const auto step = [&](int e) {  // 16 elements of depth
    uint32_t a[4];
    load_matrices(a, q + lane % 16 * S::kRow + e + lane / 16 * 8);
#pragma unroll
    for (int t = 0; t < kScores; t += 2) {
      uint32_t b[4];
      load_matrices(b, keys + (t * 8 + lane / 16 * 8 + lane % 8) * S::kRow + e + lane / 8 % 2 * 8);
      multiply(c[t], a, b[0], b[1]);
      multiply(c[t + 1], a, b[2], b[3]);
    }
  };
#pragma unroll 4
  for (int e = S::kRotated; e < kHalf; e += 16) step(half * kHalf + e);
#pragma unroll
  for (int e = 0; e < S::kRotated; e += 16) step(kDim + half * S::kRotated + e);
}

// Adds the other warp's part. Each lane's numbers lie together, so a lane reads what the same lane wrote.
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
__device__ __forceinline__ void accumulate(float (&sum)[kColumns][4], const float (&c)[kScores][4],
                                           const bf16* values) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    const auto &low = c[step * 2], &high = c[step * 2 + 1];
    const uint32_t a[4] = {pack_bf16x2(low[0], low[1]), pack_bf16x2(low[2], low[3]), pack_bf16x2(high[0], high[1]),
                           pack_bf16x2(high[2], high[3])};
#pragma unroll
    for (int t = 0; t < kColumns; t += 2) {
      uint32_t b[4];
      load_matrices_transposed(b, values + (step * 16 + lane % 16) * S::kRow + t * 8 + lane / 16 * 8);
      multiply(sum[t], a, b[0], b[1]);
      multiply(sum[t + 1], a, b[2], b[3]);
    }
  }
}

template <typename S>
struct Tiles {
  bf16 *query, *stages;  // [kRows, kRow], [kStages, kParts, kTile]: values, then keys where they lie apart
  float4* parts;         // [kWarps, kScores, 32]
  int4* see;             // [tokens]
};

template <typename S>
__device__ __forceinline__ void attend_run(const Tiles<S>& s, const KvView& kv, const Run& run, int kv_head, bool whole,
                                           RowState (&state)[2], float (&sum)[kColumns][4]) {
  const int begin = run.first / kKeys, end = run.last / kKeys + 1;
  const int warp = threadIdx.x / 32, half = warp / 4;
  const bf16* q = s.query + warp % 4 * 16 * S::kRow;
  const auto fetch = [&](int tile) {
    if (tile < end) {
      bf16* to = s.stages + tile % S::kStages * S::kParts * S::kTile;
      fetch_rows<kKeys, S::kElements, S::kRow, kWarps>(to, static_cast<const bf16*>(kv.v), kv, run, kv_head,
                                                       tile * kKeys);
      if constexpr (S::kParts == 2) {
        fetch_rows<kKeys, S::kElements, S::kRow, kWarps>(to + S::kTile, static_cast<const bf16*>(kv.k), kv, run,
                                                         kv_head, tile * kKeys);
      }
    }
    copy_commit();
  };
#pragma unroll
  for (int i = 0; i < S::kStages - 1; ++i) fetch(begin + i);
  for (int tile = begin; tile < end; ++tile) {
    copy_wait<S::kStages - 2>();
    __syncthreads();  // this tile is here, and nobody reads the one that the next copy replaces
    fetch(tile + S::kStages - 1);
    const bf16* values = s.stages + tile % S::kStages * S::kParts * S::kTile;
    float c[kScores][4];
    score<S>(c, q, S::kParts == 2 ? values + S::kTile : values, half);
    exchange(c, s.parts);
    const int base = tile * kKeys;
    const bool masked = !whole || base < run.all_first || base + kKeys - 1 > run.all_last;
    const float2 keep = soften(c, state, base, masked);
    if (__any_sync(0xffffffffu, keep.x != 1.0f || keep.y != 1.0f)) {
#pragma unroll
      for (int t = 0; t < kColumns; ++t) {
        sum[t][0] *= keep.x, sum[t][1] *= keep.x;
        sum[t][2] *= keep.y, sum[t][3] *= keep.y;
      }
    }
    accumulate<S>(sum, c, values + half * kHalf);
  }
  copy_wait<0>();
  __syncthreads();
}

// Grid: (KV heads, query tiles), the last tile of queries first.
template <typename S>
__global__ void __launch_bounds__(kWarps * 32) wide_kernel(AttendCall call, KvView kv) {
  extern __shared__ __align__(16) char memory[];
  Tiles<S> s;
  s.query = reinterpret_cast<bf16*>(memory);
  s.stages = s.query + kRows * S::kRow;
  s.parts = reinterpret_cast<float4*>(s.stages + S::kStages * S::kParts * S::kTile);
  s.see = reinterpret_cast<int4*>(s.parts + kWarps * kScores * 32);
  grid_release();
  grid_wait();
  const int group = call.q_heads / kv.heads, kv_head = blockIdx.x;
  const int token0 = (gridDim.y - 1 - blockIdx.y) * (kRows / group);
  const int tokens = min(kRows / group, call.count - token0);
  for (int i = threadIdx.x; i < tokens; i += blockDim.x)
    s.see[i] = reinterpret_cast<const int4*>(call.rows)[token0 + i];
  load_wide<S>(s.query, call, kv, token0, kv_head * group, group);
  __syncthreads();
  RowState state[2] = {{1, 0, -INFINITY, 0.0f}, {1, 0, -INFINITY, 0.0f}};
  float sum[kColumns][4] = {};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, m0 = warp % 4 * 16 + lane / 4;
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
                (kv_head * group + m % group) * kDim + warp / 4 * kHalf;
#pragma unroll
    for (int t = 0; t < kColumns; ++t) {
      const float* x = sum[t] + 2 * i;
      *reinterpret_cast<uint32_t*>(out + t * 8 + lane % 4 * 2) = pack_bf16x2(x[0] * factor, x[1] * factor);
    }
  }
}

template <typename S>
void run(cudaStream_t stream, const AttendCall& call, const KvView& kv) {
  static_assert(S::kShared <= 227 * 1024);
  static const bool allowed = (allow_shared(wide_kernel<S>, S::kShared), true);
  (void)allowed;
  const int tokens = kRows / (call.q_heads / kv.heads);
  launch(stream, dim3(kv.heads, (call.count + tokens - 1) / tokens), kWarps * 32, S::kShared, wide_kernel<S>, call, kv);
}

}  // namespace

void attend_prefill_wide(cudaStream_t stream, const AttendCall& call, const KvView& kv) {
  if (kv.rotated) return run<Shape<64>>(stream, call, kv);
  run<Shape<0>>(stream, call, kv);
}

}  // namespace gemma4::cuda
