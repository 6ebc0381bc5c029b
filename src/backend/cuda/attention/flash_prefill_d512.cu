// flash_prefill_d512: attention of many rows with head size 512 (full layers), as flash attention with wgmma. 512
// float32 columns do not fit into the registers of one warpgroup, so two warpgroups share 64 rows. Each multiplies half
// of the depth of q k^T, they add the two halves through shared memory, both compute the same softmax, and each keeps
// half of the columns of the output. With a compressed cache one tile serves as V and, with the kept elements beside
// it, as K (KvCacheView). The softmax of the next tile overlaps the products of this one, as in flash_prefill.cu. The
// tensor cores bound the speed.
#include "backend/cuda/attention/flash_tile.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kDim = 512;
constexpr int kRows = 64;  // of the query tile
constexpr int kThreads = 256;
constexpr int kKeys = 32;
constexpr int kHalf = kDim / 2;
constexpr int kColTiles = kHalf / 8;  // column tiles of a warpgroup
constexpr int kVectors = kDim / 8;    // of 8 elements, in a row
constexpr int kSteps = kHalf / 16;    // over the depth, of a warpgroup
constexpr int kScores = kKeys / 8;

template <int kRotated_>
struct Shape {
  static constexpr int kRotated = kRotated_;
  static constexpr int kElements = kDim + 2 * kRotated;
  static constexpr int kTile = kKeys * kElements;
  static constexpr int kTiles = kRotated ? 3 : 4;  // three of keys and values together, or two of each
  static constexpr size_t kExchange = sizeof(float4) * (kThreads / 32) * kScores * 32;
  static constexpr size_t kShared =
      sizeof(attention_t) * (kRows * kDim + kTiles * kTile) + kExchange + sizeof(int4) * kRows;
  static_assert(kShared <= 227 * 1024 && kRotated % 16 == 0);

  // The vector at which step `step` of a half of the depth begins in a key row: first V's elements that replace K's,
  // then the elements of K that the cache keeps.
  static constexpr int key_vec(int half, int step) {
    const int whole = (kHalf - kRotated) / 16;  // steps over V
    return step < whole ? half * (kVectors / 2) + kRotated / 8 + 2 * step
                        : kVectors + half * (kRotated / 8) + 2 * (step - whole);
  }
};

// Loads the queries in the order in which the steps of the two halves read them. For a compressed cache the elements
// that are multiplied by V are first multiplied by K's norm weight.
template <typename S>
__device__ __forceinline__ void load_query(attention_t* to, const AttentionCall& call, const KvCacheView& kv,
                                           int token0, int head0, int group) {
  for (int i = threadIdx.x; i < kRows * kVectors; i += kThreads) {
    const int m = i % kRows, vec = i / kRows, token = token0 + m / group;
    const int half = vec / (kVectors / 2), within = vec % (kVectors / 2), whole = (kHalf - S::kRotated) / 8;
    const int e = half * kHalf + (within < whole ? S::kRotated + within * 8 : (within - whole) * 8);
    uint4 value = make_uint4(0, 0, 0, 0);
    if (token < call.count) {
      const attention_t* q =
          static_cast<const attention_t*>(call.q) + token * call.q_stride + (head0 + m % group) * kDim + e;
      value = *reinterpret_cast<const uint4*>(q);
      if (S::kRotated > 0 && within < whole) {
        float x[8], w[8];
        load8(q, x);
        load8(kv.k_norm + e, w);
        value = make_uint4(pack_attention(x[0] * w[0], x[1] * w[1]), pack_attention(x[2] * w[2], x[3] * w[3]),
                           pack_attention(x[4] * w[4], x[5] * w[5]), pack_attention(x[6] * w[6], x[7] * w[7]));
      }
    }
    *reinterpret_cast<uint4*>(to + vec_offset<kRows>(m, vec)) = value;
  }
}

// Starts the copy of keys base .. base+31 into `to`: a warp copies 8 keys and half of their vectors.
template <typename S>
__device__ __forceinline__ void fetch(attention_t* to, const attention_t* from, const KvCacheView& kv, const Run& run,
                                      int kv_head, int base) {
  constexpr int kCopies = S::kElements / 8 / 2;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = warp % 4 * 8 + lane % 8, pos = base + row, first = warp / 4 * kCopies;
  const bool valid = pos >= run.first && pos <= run.last;
  const int64_t offset = valid ? kv_offset(kv, run.seq, pos, kv_head) : 0;
#pragma unroll
  for (int vec = lane / 8; vec < kCopies; vec += 4) {
    copy16_async(to + vec_offset<kKeys>(row, first + vec), from + offset + (first + vec) * 8, valid);
  }
}

// Starts the scores [64, kKeys] over this warpgroup's half of the depth.
template <typename S>
__device__ __forceinline__ void start_scores(float (&c)[kScores][4], const attention_t* q, const attention_t* keys,
                                             int half) {
  const uint64_t a = tile_descriptor(q, kRows * 16, 128) + half * (kVectors / 2) * kRows;
  const uint64_t b = tile_descriptor(keys, kKeys * 16, 128);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    multiply_shared(c, a + step * 2 * kRows, b + S::key_vec(half, step) * kKeys, step > 0);
  }
  group_commit();
}

// Starts sum += weights * values, for this warpgroup's columns.
__device__ __forceinline__ void start_sums(float (&sum)[kColTiles][4], const uint32_t (&weights)[kKeys / 16][4],
                                           const attention_t* values, int half) {
  const uint64_t b = tile_descriptor(values, 128, kKeys * 16) + half * (kVectors / 2) * kKeys;
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) multiply_registers(sum, weights[step], b + step * 16);
  group_commit();
}

// Adds the scores over the other warpgroup's half of the depth. A lane reads what the same lane of the other warp
// wrote.
__device__ __forceinline__ void add_other_half(float (&c)[kScores][4], float4* partials) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float4* mine = partials + warp * 32 * kScores + lane;
  const float4* other = partials + (warp ^ 4) * 32 * kScores + lane;
#pragma unroll
  for (int t = 0; t < kScores; ++t) mine[t * 32] = make_float4(c[t][0], c[t][1], c[t][2], c[t][3]);
  asm volatile("bar.sync %0, 64;" ::"r"(warp % 4 + 1) : "memory");  // the two warps that have these 16 rows
#pragma unroll
  for (int t = 0; t < kScores; ++t) {
    const float4 x = other[t * 32];
    c[t][0] += x.x, c[t][1] += x.y, c[t][2] += x.z, c[t][3] += x.w;
  }
}

template <typename S>
struct Tiles {
  attention_t *query, *tiles;  // [kRows, kDim], [kTiles, kTile]
  float4* partials;            // [8 warps, kScores, 32]
  int4* row_masks;             // [tokens]

  __device__ attention_t* keys(int tile) const { return tiles + (S::kRotated ? tile % 3 : tile % 2) * S::kTile; }
  __device__ attention_t* values(int tile) const { return tiles + (S::kRotated ? tile % 3 : 2 + tile % 2) * S::kTile; }
};

// The key tiles begin .. end-1 of one run.
template <typename S>
struct RunTiles {
  const Tiles<S>& s;
  const KvCacheView& kv;
  const Run& run;
  int kv_head, begin, end;

  __device__ __forceinline__ void fetch_keys(int tile) const {  // of a compressed cache: and values
    if (tile >= end) return;
    fetch<S>(s.keys(tile), static_cast<const attention_t*>(S::kRotated ? kv.v : kv.k), kv, run, kv_head, tile * kKeys);
  }
  __device__ __forceinline__ void fetch_values(int tile) const {
    if (S::kRotated || tile >= end) return;
    fetch<S>(s.values(tile), static_cast<const attention_t*>(kv.v), kv, run, kv_head, tile * kKeys);
  }
};

// Starts the copies of the first tiles; scores and softmax weights of the first.
template <typename S>
__device__ __forceinline__ void first_weights(const RunTiles<S>& tiles, int half, RowState (&state)[2],
                                              float (&c)[kScores][4], uint32_t (&weights)[kKeys / 16][4]) {
  const int begin = tiles.begin;
  tiles.fetch_keys(begin);
  copy_commit();
  tiles.fetch_keys(begin + 1);
  tiles.fetch_values(begin);
  copy_commit();
  wait_for_copies<1>();
  group_fence();
  start_scores<S>(c, tiles.s.query, tiles.s.keys(begin), half);
  group_wait<0>();
  pin(c);
  add_other_half(c, tiles.s.partials);
  // Nothing is rescaled yet: the output so far is zero, or that of another run's rows.
  online_softmax(c, state, begin * kKeys, tiles.run.template masked<kKeys>(begin * kKeys));
  pack_weights(weights, c);
}

// All keys of one run, for the whole query tile; the order is that of flash_prefill.cu.
template <typename S>
__device__ __forceinline__ void attention_over_run(const Tiles<S>& s, const KvCacheView& kv, const Run& run,
                                                   int kv_head, RowState (&state)[2], float (&sum)[kColTiles][4]) {
  const RunTiles<S> tiles = {s, kv, run, kv_head, run.first / kKeys, run.last / kKeys + 1};
  const int half = threadIdx.x / 128;
  float c[kScores][4];
  uint32_t weights[kKeys / 16][4];
  first_weights<S>(tiles, half, state, c, weights);
  int tile = tiles.begin;
  for (; tile + 1 < tiles.end; ++tile) {
    wait_for_copies<0>();
    pin(sum);
    group_fence();
    start_scores<S>(c, s.query, s.keys(tile + 1), half);
    start_sums(sum, weights, s.values(tile), half);
    tiles.fetch_keys(tile + 2);
    tiles.fetch_values(tile + 1);
    copy_commit();
    group_wait<1>();
    pin(c);
    add_other_half(c, s.partials);
    const float2 keep = online_softmax(c, state, (tile + 1) * kKeys, run.template masked<kKeys>((tile + 1) * kKeys));
    group_wait<0>();
    pin(sum);
    if (__any_sync(0xffffffffu, keep.x != 1.0f || keep.y != 1.0f)) rescale(sum, keep);
    pack_weights(weights, c);
  }
  wait_for_copies<0>();
  pin(sum);
  group_fence();
  start_sums(sum, weights, s.values(tile), half);
  group_wait<0>();
  pin(sum);
  __syncthreads();
}

// Grid: (KV heads, query tiles).
template <typename S>
__global__ void __launch_bounds__(kThreads, 1) flash_prefill_d512_kernel(AttentionCall call, KvCacheView kv) {
  extern __shared__ __align__(128) char memory[];
  Tiles<S> s;
  s.query = reinterpret_cast<attention_t*>(memory);
  s.tiles = s.query + kRows * kDim;
  s.partials = reinterpret_cast<float4*>(s.tiles + S::kTiles * S::kTile);
  s.row_masks = reinterpret_cast<int4*>(s.partials + kThreads / 32 * kScores * 32);
  grid_release();
  grid_wait();
  const QueryTile tile = query_tile<kRows, true>(call, kv);
  load_row_masks<kThreads>(s.row_masks, call, tile);
  load_query<S>(s.query, call, kv, tile.token0, tile.kv_head * tile.group, tile.group);
  fence_async();
  __syncthreads();
  RowState state[2] = {{1, 0, -INFINITY, 0.0f}, {1, 0, -INFINITY, 0.0f}};
  float sum[kColTiles][4] = {};
  for (int begin = 0; begin < tile.tokens;) {
    const Run run = next_run(s.row_masks, begin, tile.tokens);
    set_intervals(state, s.row_masks, tile, run);
    attention_over_run<S>(s, kv, run, tile.kv_head, state, sum);
    begin = run.end;
  }
  store_output<kDim>(call, tile, threadIdx.x / 128 * kHalf, state, sum);
}

template <typename S>
void run(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv) {
  static AllowedOn allowed;
  allow_shared_once(flash_prefill_d512_kernel<S>, S::kShared, allowed);
  const int tokens = kRows / (call.q_heads / kv.heads);
  launch(stream, dim3(kv.heads, (call.count + tokens - 1) / tokens), kThreads, S::kShared, flash_prefill_d512_kernel<S>,
         call, kv);
}

}  // namespace

void flash_prefill_d512(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv) {
  if (kv.rotated) return run<Shape<64>>(stream, call, kv);
  run<Shape<0>>(stream, call, kv);
}

}  // namespace gemma4::cuda
