// flash_prefill: attention of many rows with head sizes 72 (vision) and 256 (sliding layers), as flash attention with
// wgmma. A warpgroup keeps 64 rows of the query tile with all their columns. While the tensor cores multiply the
// softmax weights of one tile by its values, the warps compute the softmax of the next tile. Key tiles that no row of
// the query tile sees are never read. Tiles that every row sees entirely skip the mask. The tensor cores bound the
// speed.
#include "backend/cuda/attention/flash_tile.cuh"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kKeys = 64;  // of a tile

template <int kDim_, int kGroups_, int kBlocks_>
struct Shape {
  static constexpr int kDim = kDim_, kGroups = kGroups_;
  static constexpr int kBlocks = kBlocks_;  // CTAs on an SM
  static constexpr int kThreads = kGroups * 128;
  static constexpr int kRows = kGroups * 64;            // of the query tile
  static constexpr int kDepth = (kDim + 15) / 16 * 16;  // of q k^T, zeros beyond kDim
  static constexpr int kColTiles = kDim / 8;            // column tiles of the output
  static constexpr int kQuery = kRows * kDepth;         // elements
  static constexpr int kTile = kKeys * kDepth;
  static constexpr size_t kShared = sizeof(attention_t) * (kQuery + 4 * kTile) + sizeof(int4) * kRows;
};

// Starts the copy of keys base .. base+63 into `to`. A warp copies 8 keys at a time, 4 vectors of each in one
// instruction: 64 contiguous bytes in device memory, and 8 keys side by side in shared memory.
template <typename S>
__device__ __forceinline__ void fetch(attention_t* to, const attention_t* from, const KvCacheView& kv, const Run& run,
                                      int kv_head, int base) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int group = threadIdx.x / 32; group < kKeys / 8; group += S::kThreads / 32) {
    const int row = group * 8 + lane % 8, pos = base + row;
    const bool valid = pos >= run.first && pos <= run.last;
    const int64_t offset = valid ? kv_offset(kv, run.seq, pos, kv_head) : 0;
#pragma unroll
    for (int vec = lane / 8; vec < S::kDim / 8; vec += 4) {
      copy16_async(to + vec_offset<kKeys>(row, vec), from + offset + vec * 8, valid);
    }
  }
}

// The query tile; rows past the last token and columns past kDim are zeros.
template <typename S>
__device__ __forceinline__ void load_query(attention_t* to, const AttentionCall& call, int token0, int head0,
                                           int group) {
  for (int i = threadIdx.x; i < S::kRows * S::kDepth / 8; i += S::kThreads) {
    const int m = i % S::kRows, vec = i / S::kRows, token = token0 + m / group;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (token < call.count && vec < S::kDim / 8) {
      const attention_t* q =
          static_cast<const attention_t*>(call.q) + token * call.q_stride + (head0 + m % group) * S::kDim;
      value = *reinterpret_cast<const uint4*>(q + vec * 8);
    }
    *reinterpret_cast<uint4*>(to + vec_offset<S::kRows>(m, vec)) = value;
  }
}

// Starts scores [64, kKeys] = q keys^T of this warpgroup.
template <typename S>
__device__ __forceinline__ void start_scores(float (&c)[kKeys / 8][4], const attention_t* q, const attention_t* keys) {
  const uint64_t a = tile_descriptor(q, S::kRows * 16, 128), b = tile_descriptor(keys, kKeys * 16, 128);
#pragma unroll
  for (int step = 0; step < S::kDepth / 16; ++step) {  // two vectors each; descriptors count in units of 16 bytes
    multiply_shared(c, a + step * 2 * S::kRows, b + step * 2 * kKeys, step > 0);
  }
  group_commit();
}

// Starts sum += weights * values.
template <typename S>
__device__ __forceinline__ void start_sums(float (&sum)[S::kColTiles][4], const uint32_t (&weights)[kKeys / 16][4],
                                           const attention_t* values) {
  const uint64_t b = tile_descriptor(values, 128, kKeys * 16);
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {  // 16 keys: two core matrices
    multiply_registers(sum, weights[step], b + step * 16);
  }
  group_commit();
}

template <typename S>
struct Tiles {
  attention_t *query, *keys, *values;  // [kQuery], [2, kTile], [2, kTile]
  int4* row_masks;                     // [tokens]

  __device__ __forceinline__ attention_t* keys_of(int tile) const { return keys + tile % 2 * S::kTile; }
  __device__ __forceinline__ attention_t* values_of(int tile) const { return values + tile % 2 * S::kTile; }
};

// The key tiles begin .. end-1 of one run.
template <typename S>
struct RunTiles {
  const Tiles<S>& s;
  const KvCacheView& kv;
  const Run& run;
  int kv_head, begin, end;

  __device__ __forceinline__ void fetch_keys(int tile) const {
    if (tile >= end) return;
    fetch<S>(s.keys_of(tile), static_cast<const attention_t*>(kv.k), kv, run, kv_head, tile * kKeys);
  }
  __device__ __forceinline__ void fetch_values(int tile) const {
    if (tile >= end) return;
    fetch<S>(s.values_of(tile), static_cast<const attention_t*>(kv.v), kv, run, kv_head, tile * kKeys);
  }
};

// Starts the copies of the first tiles; scores and softmax weights of the first.
template <typename S>
__device__ __forceinline__ void first_weights(const RunTiles<S>& tiles, const attention_t* q, RowState (&state)[2],
                                              float (&c)[kKeys / 8][4], uint32_t (&weights)[kKeys / 16][4]) {
  const int begin = tiles.begin;
  tiles.fetch_keys(begin);
  copy_commit();
  tiles.fetch_keys(begin + 1);
  tiles.fetch_values(begin);
  copy_commit();
  wait_for_copies<1>();
  group_fence();
  start_scores<S>(c, q, tiles.s.keys_of(begin));
  group_wait<0>();
  pin(c);
  // Nothing is rescaled yet: the output so far is zero, or that of another run's rows.
  online_softmax(c, state, begin * kKeys, tiles.run.template masked<kKeys>(begin * kKeys));
  pack_weights(weights, c);
}

// All keys of one run, for the whole query tile. In step j the products of tile j's values and of tile j + 1's keys run
// while the copies of values j + 1 and keys j + 2 arrive.
template <typename S>
__device__ __forceinline__ void attention_over_run(const Tiles<S>& s, const KvCacheView& kv, const Run& run,
                                                   int kv_head, RowState (&state)[2], float (&sum)[S::kColTiles][4]) {
  const RunTiles<S> tiles = {s, kv, run, kv_head, run.first / kKeys, run.last / kKeys + 1};
  const attention_t* q = s.query + threadIdx.x / 128 * 64 * 8;
  float c[kKeys / 8][4];
  uint32_t weights[kKeys / 16][4];
  first_weights<S>(tiles, q, state, c, weights);
  int tile = tiles.begin;
  for (; tile + 1 < tiles.end; ++tile) {
    wait_for_copies<0>();
    pin(sum);
    group_fence();
    start_scores<S>(c, q, s.keys_of(tile + 1));
    start_sums<S>(sum, weights, s.values_of(tile));
    tiles.fetch_keys(tile + 2);  // into the buffers that step j - 1 has finished with
    tiles.fetch_values(tile + 1);
    copy_commit();
    group_wait<1>();
    pin(c);
    const float2 keep = online_softmax(c, state, (tile + 1) * kKeys, run.template masked<kKeys>((tile + 1) * kKeys));
    group_wait<0>();
    pin(sum);
    rescale(sum, keep);
    pack_weights(weights, c);
  }
  wait_for_copies<0>();
  pin(sum);
  group_fence();
  start_sums<S>(sum, weights, s.values_of(tile));
  group_wait<0>();
  pin(sum);
  copy_wait<0>();
  __syncthreads();
}

// Grid: (KV heads, query tiles).
template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) flash_prefill_kernel(AttentionCall call, KvCacheView kv) {
  extern __shared__ __align__(128) char memory[];
  Tiles<S> s;
  s.query = reinterpret_cast<attention_t*>(memory);
  s.keys = s.query + S::kQuery;
  s.values = s.keys + 2 * S::kTile;
  s.row_masks = reinterpret_cast<int4*>(s.values + 2 * S::kTile);
  grid_release();
  if constexpr (S::kDepth != S::kDim) {  // columns that no copy writes
    for (int i = threadIdx.x; i < 4 * S::kTile / 8; i += S::kThreads) {
      reinterpret_cast<uint4*>(s.keys)[i] = make_uint4(0, 0, 0, 0);
    }
  }
  grid_wait();
  const QueryTile tile = query_tile<S::kRows, false>(call, kv);
  load_row_masks<S::kThreads>(s.row_masks, call, tile);
  load_query<S>(s.query, call, tile.token0, tile.kv_head * tile.group, tile.group);
  fence_async();
  __syncthreads();
  RowState state[2] = {{1, 0, -INFINITY, 0.0f}, {1, 0, -INFINITY, 0.0f}};
  float sum[S::kColTiles][4] = {};
  for (int begin = 0; begin < tile.tokens;) {
    const Run run = next_run(s.row_masks, begin, tile.tokens);
    set_intervals(state, s.row_masks, tile, run);
    attention_over_run<S>(s, kv, run, tile.kv_head, state, sum);
    begin = run.end;
  }
  store_output<S::kDim>(call, tile, 0, state, sum);
}

template <typename S>
void run(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv) {
  static AllowedOn allowed;
  allow_shared_once(flash_prefill_kernel<S>, S::kShared, allowed);
  const int tokens = S::kRows / (call.q_heads / kv.heads);
  launch(stream, dim3(kv.heads, (call.count + tokens - 1) / tokens), S::kThreads, S::kShared, flash_prefill_kernel<S>,
         call, kv);
}

}  // namespace

bool flash_prefill_fits(const AttentionCall& call, const KvCacheView& kv) {
  const auto aligned = [](const void* p, int64_t stride) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 8 == 0;
  };
  const int group = call.q_heads / kv.heads;
  if (!aligned_rows(call.q, call.q_stride) || !aligned_rows(call.out, call.out_stride)) return false;
  if (kv.dim == 512) return (kv.rotated == 0 || kv.rotated == 64) && 64 % group == 0;
  return (kv.dim == 72 || kv.dim == 256) && kv.rotated == 0 && !kv.tiled && 128 % group == 0;
}

void flash_prefill(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv) {
  if (kv.dim == 72) return run<Shape<72, 2, 2>>(stream, call, kv);
  run<Shape<256, 2, 1>>(stream, call, kv);
}

}  // namespace gemma4::cuda
