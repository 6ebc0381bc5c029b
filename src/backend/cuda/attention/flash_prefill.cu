// Attention of many rows, head sizes 72 (vision) and 256 (sliding layers): flash attention with warpgroup products. A
// warpgroup keeps 64 rows of the query tile with all their columns. While the tensor cores multiply one tile's weights
// by its values, the warps already work out the softmax of the next. Key tiles that no row of the query tile may see
// are never read; tiles that every row sees whole skip the mask.
#include "backend/cuda/attention/flash_tile.cuh"
#include "backend/cuda/device/wgmma.cuh"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kKeys = 64;  // of a tile

template <int kDim_, int kGroups_, int kBlocks_>
struct Shape {
  static constexpr int kDim = kDim_, kGroups = kGroups_;
  static constexpr int kBlocks = kBlocks_;  // blocks on a multiprocessor
  static constexpr int kThreads = kGroups * 128;
  static constexpr int kRows = kGroups * 64;            // of the query tile
  static constexpr int kDepth = (kDim + 15) / 16 * 16;  // of q k^T, zeros beyond kDim
  static constexpr int kColumns = kDim / 8;             // column tiles of the output
  static constexpr int kQuery = kRows * kDepth;         // elements
  static constexpr int kTile = kKeys * kDepth;
  static constexpr size_t kShared = sizeof(attend_t) * (kQuery + 4 * kTile) + sizeof(int4) * kRows;
};

// Starts the copy of keys base .. base+63 into `to`. A warp takes 8 keys at a time, 4 chunks of each in one
// instruction: 64 bytes together in memory, and 8 keys side by side in shared memory.
template <typename S>
__device__ __forceinline__ void fetch(attend_t* to, const attend_t* from, const KvCacheView& kv, const Run& run,
                                      int kv_head, int base) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int group = threadIdx.x / 32; group < kKeys / 8; group += S::kThreads / 32) {
    const int row = group * 8 + lane % 8, pos = base + row;
    const bool valid = pos >= run.first && pos <= run.last;
    const int64_t at = valid ? kv_place(kv, run.seq, pos, kv_head) : 0;
#pragma unroll
    for (int chunk = lane / 8; chunk < S::kDim / 8; chunk += 4) {
      copy16_async(to + chunk_at<kKeys>(row, chunk), from + at + chunk * 8, valid);
    }
  }
}

// The query tile; rows past the last token and columns past kDim are zeros.
template <typename S>
__device__ __forceinline__ void load_query(attend_t* to, const AttendCall& call, int token0, int head0, int group) {
  for (int i = threadIdx.x; i < S::kRows * S::kDepth / 8; i += S::kThreads) {
    const int m = i % S::kRows, chunk = i / S::kRows, token = token0 + m / group;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (token < call.count && chunk < S::kDim / 8) {
      const attend_t* q = static_cast<const attend_t*>(call.q) + token * call.q_stride + (head0 + m % group) * S::kDim;
      value = *reinterpret_cast<const uint4*>(q + chunk * 8);
    }
    *reinterpret_cast<uint4*>(to + chunk_at<S::kRows>(m, chunk)) = value;
  }
}

// Starts scores [64, kKeys] = q keys^T of this warpgroup.
template <typename S>
__device__ __forceinline__ void start_scores(float (&c)[kKeys / 8][4], const attend_t* q, const attend_t* keys) {
  const uint64_t a = tile_descriptor(q, S::kRows * 16, 128), b = tile_descriptor(keys, kKeys * 16, 128);
#pragma unroll
  for (int step = 0; step < S::kDepth / 16; ++step) {  // two chunks each; descriptors count 16 bytes
    multiply_shared(c, a + step * 2 * S::kRows, b + step * 2 * kKeys, step > 0);
  }
  group_commit();
}

// Starts sum += weights * values.
template <typename S>
__device__ __forceinline__ void start_sums(float (&sum)[S::kColumns][4], const uint32_t (&weights)[kKeys / 16][4],
                                           const attend_t* values) {
  const uint64_t b = tile_descriptor(values, 128, kKeys * 16);
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {  // 16 keys: two core matrices
    multiply_registers(sum, weights[step], b + step * 16);
  }
  group_commit();
}

__device__ __forceinline__ void pack(uint32_t (&weights)[kKeys / 16][4], const float (&c)[kKeys / 8][4]) {
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    const auto &low = c[2 * step], &high = c[2 * step + 1];
    weights[step][0] = pack_attend(low[0], low[1]);
    weights[step][1] = pack_attend(low[2], low[3]);
    weights[step][2] = pack_attend(high[0], high[1]);
    weights[step][3] = pack_attend(high[2], high[3]);
  }
}

template <typename S>
struct Tiles {
  attend_t *query, *keys, *values;  // [kQuery], [2, kTile], [2, kTile]
  int4* see;                        // [tokens]
};

// All keys of one run, for the whole query tile. In step j: the products of tile j's values and of tile j + 1's keys
// run while the copies of values j + 1 and keys j + 2 arrive.
template <typename S>
__device__ __forceinline__ void attend_run(const Tiles<S>& s, const KvCacheView& kv, const Run& run, int kv_head,
                                           bool whole, RowState (&state)[2], float (&sum)[S::kColumns][4]) {
  const int begin = run.first / kKeys, end = run.last / kKeys + 1;
  const attend_t* q = s.query + threadIdx.x / 128 * 64 * 8;
  const auto keys = [&](int tile) {
    if (tile < end)
      fetch<S>(s.keys + tile % 2 * S::kTile, static_cast<const attend_t*>(kv.k), kv, run, kv_head, tile * kKeys);
  };
  const auto values = [&](int tile) {
    if (tile < end) {
      fetch<S>(s.values + tile % 2 * S::kTile, static_cast<const attend_t*>(kv.v), kv, run, kv_head, tile * kKeys);
    }
  };
  const auto masked = [&](int tile) {
    return !whole || tile * kKeys < run.all_first || tile * kKeys + kKeys - 1 > run.all_last;
  };
  keys(begin);
  copy_commit();
  keys(begin + 1), values(begin);
  copy_commit();
  copy_wait<1>();
  fence_async();
  __syncthreads();
  float c[kKeys / 8][4];
  uint32_t weights[kKeys / 16][4];
  group_fence();
  start_scores<S>(c, q, s.keys + begin % 2 * S::kTile);
  group_wait<0>();
  pin(c);
  soften(c, state, begin * kKeys, masked(begin));  // nothing to rescale yet: what it replaces is zero, or another run's
  pack(weights, c);
  int tile = begin;
  for (; tile + 1 < end; ++tile) {
    copy_wait<0>();
    fence_async();
    __syncthreads();
    pin(sum);
    group_fence();
    start_scores<S>(c, q, s.keys + (tile + 1) % 2 * S::kTile);
    start_sums<S>(sum, weights, s.values + tile % 2 * S::kTile);
    keys(tile + 2), values(tile + 1);  // into what step j - 1 has done with
    copy_commit();
    group_wait<1>();
    pin(c);
    const float2 keep = soften(c, state, (tile + 1) * kKeys, masked(tile + 1));
    group_wait<0>();
    pin(sum);
#pragma unroll
    for (int t = 0; t < S::kColumns; ++t) {
      sum[t][0] *= keep.x, sum[t][1] *= keep.x;
      sum[t][2] *= keep.y, sum[t][3] *= keep.y;
    }
    pack(weights, c);
  }
  copy_wait<0>();
  fence_async();
  __syncthreads();
  pin(sum);
  group_fence();
  start_sums<S>(sum, weights, s.values + tile % 2 * S::kTile);
  group_wait<0>();
  pin(sum);
  copy_wait<0>();
  __syncthreads();
}

// Grid: (KV heads, query tiles), the last tile of queries (the longest under a causal mask) first.
template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) prefill_kernel(AttendCall call, KvCacheView kv) {
  extern __shared__ __align__(128) char memory[];
  Tiles<S> s;
  s.query = reinterpret_cast<attend_t*>(memory);
  s.keys = s.query + S::kQuery;
  s.values = s.keys + 2 * S::kTile;
  s.see = reinterpret_cast<int4*>(s.values + 2 * S::kTile);
  grid_release();
  if constexpr (S::kDepth != S::kDim) {  // columns that no copy writes
    for (int i = threadIdx.x; i < 4 * S::kTile / 8; i += S::kThreads) {
      reinterpret_cast<uint4*>(s.keys)[i] = make_uint4(0, 0, 0, 0);
    }
  }
  grid_wait();
  const int group = call.q_heads / kv.heads, kv_head = blockIdx.x;
  const int token0 = (gridDim.y - 1 - blockIdx.y) * (S::kRows / group);
  const int tokens = min(S::kRows / group, call.count - token0);
  for (int i = threadIdx.x; i < tokens; i += S::kThreads) {
    s.see[i] = reinterpret_cast<const int4*>(call.rows)[token0 + i];
  }
  load_query<S>(s.query, call, token0, kv_head * group, group);
  fence_async();
  __syncthreads();
  RowState state[2] = {{1, 0, -INFINITY, 0.0f}, {1, 0, -INFINITY, 0.0f}};
  float sum[S::kColumns][4] = {};
  const int lane = threadIdx.x % 32, m0 = threadIdx.x / 32 * 16 + lane / 4;
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
    bf16* out =
        static_cast<bf16*>(call.out) + (token0 + token) * call.out_stride + (kv_head * group + m % group) * S::kDim;
#pragma unroll
    for (int t = 0; t < S::kColumns; ++t) {
      const float* x = sum[t] + 2 * i;
      *reinterpret_cast<uint32_t*>(out + t * 8 + lane % 4 * 2) = pack_bf16x2(x[0] * factor, x[1] * factor);
    }
  }
}

template <typename S>
void run(cudaStream_t stream, const AttendCall& call, const KvCacheView& kv) {
  static AllowedOn allowed;
  allow_shared_once(prefill_kernel<S>, S::kShared, allowed);
  const int tokens = S::kRows / (call.q_heads / kv.heads);
  launch(stream, dim3(kv.heads, (call.count + tokens - 1) / tokens), S::kThreads, S::kShared, prefill_kernel<S>, call,
         kv);
}

}  // namespace

bool prefill_fits(const AttendCall& call, const KvCacheView& kv) {
  const int group = call.q_heads / kv.heads;
  if (!aligned_rows(call.q, call.q_stride) || !aligned_rows(call.out, call.out_stride)) return false;
  if (kv.dim == 512) return (kv.rotated == 0 || kv.rotated == 64) && 64 % group == 0;
  return (kv.dim == 72 || kv.dim == 256) && kv.rotated == 0 && !kv.tiled && 128 % group == 0;
}

void attend_prefill(cudaStream_t stream, const AttendCall& call, const KvCacheView& kv) {
  if (kv.dim == 72) return run<Shape<72, 2, 2>>(stream, call, kv);
  run<Shape<256, 2, 1>>(stream, call, kv);
}

}  // namespace gemma4::cuda
