// flash_prefill_mma: attention of many rows on devices without wgmma, as flash attention with mma.sync. Head sizes 72
// (vision tower), 256 (sliding layers) and 512 (full layers). It needs compute capability 8.0 and 99 KB of shared
// memory.
//
// A warp has 16 rows of the query tile, whose fragments stay in its registers, as do the sums of its output. At head
// size 512 neither would fit, so two warps share 16 rows. Each multiplies half of the depth of q k^T, they add the two
// halves through shared memory, both compute the same softmax, and each keeps half of the columns of the output. With
// a compressed cache one tile serves as V and, with the kept elements beside it, as K (KvCacheView).
//
// Two tiles of keys and values are in shared memory: one arrives while the other is multiplied. Tiles are core matrices
// of 8 rows x 16 bytes, each of them contiguous, as in flash_prefill.cu, so that ldmatrix meets no bank conflict. On
// GPUs with fast tensor cores (8.0, 9.0) the reads of shared memory bound the speed: the operands of one mma take two
// cycles of an SM. On the others the tensor cores do.
#include "backend/cuda/attention/flash_tile.cuh"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;
constexpr int kCoreBytes = 128;  // of a core matrix

template <int kDim_, int kRotated_, int kKeys_, int kBlocks_>
struct Shape {
  static constexpr int kDim = kDim_, kRotated = kRotated_;
  static constexpr int kKeys = kKeys_;                // of a tile
  static constexpr int kBlocks = kBlocks_;            // CTAs on an SM
  static constexpr int kShare = kDim > 256 ? 2 : 1;   // warps that have the same 16 rows
  static constexpr int kRows = 16 * kWarps / kShare;  // of the query tile
  static constexpr int kCols = kDim / kShare;         // of a warp: elements of the depth of q k^T, and of the output
  static constexpr int kColTiles = kCols / 8;         // column tiles of the output
  static constexpr int kSteps = (kCols + 15) / 16;    // over the depth; the last may have 8 elements only
  static constexpr int kFromV = kRotated ? (kCols - kRotated) / 16 : kSteps;  // steps whose keys are made from V
  static constexpr int kScores = kKeys / 8;                                   // tiles of 8 keys
  static constexpr int kVectors = (kDim + 2 * kRotated) / 8;                  // of 8 elements, in a row of the cache
  static constexpr int kVectorBytes = kKeys * 16;                             // from a vector of a tile row to the next
  static constexpr int kRowSets = kWarps / kScores;                           // warps that copy the same 8 keys
  static constexpr int kPlane = kKeys * kVectors * 8;           // elements of the values of a tile, or of its keys
  static constexpr int kTile = kRotated ? kPlane : 2 * kPlane;  // values, then keys
  static constexpr size_t kExchange = kShare > 1 ? kWarps* kScores * 32 * sizeof(float4) : 0;
  static constexpr size_t kShared = sizeof(attention_t) * 2 * kTile + kExchange + sizeof(int4) * kRows;
  static_assert(kShared <= 99 * 1024 && kRotated % 16 == 0 && kKeys % 16 == 0 && kWarps % kScores == 0);
  static_assert((kCols % 16 == 0 || kKeys % 32 == 0) && (kShare == 1 || kCols % 16 == 0));
};

template <typename S>
struct Shared {
  attention_t* tiles;  // [2, kTile]
  float4* partials;    // [kWarps, kScores, 32] where two warps share rows
  int4* row_masks;     // [tokens]

  __device__ explicit Shared(char* at) {
    tiles = reinterpret_cast<attention_t*>(at);
    at += sizeof(attention_t) * 2 * S::kTile;
    partials = reinterpret_cast<float4*>(at);
    row_masks = reinterpret_cast<int4*>(at + S::kExchange);
  }
};

// Which half of the depth and of the output's columns this warp has.
template <typename S>
__device__ __forceinline__ int warp_half() {
  return S::kShare > 1 ? threadIdx.x / 32 % 2 : 0;
}

// Loads this warp's 16 rows of the query as A fragments (device/mma.cuh), in the order in which compute_scores()
// reads the keys. For a compressed cache the elements that are multiplied by V are first multiplied by K's norm weight.
// Rows past the last token and elements past the depth are zeros.
template <typename S>
__device__ __forceinline__ void load_query(uint32_t (&q)[S::kSteps][4], const AttentionCall& call,
                                           const KvCacheView& kv, const QueryTile& tile) {
  const int column = warp_half<S>() * S::kCols + threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int m = tile.first_row + 8 * i, token = m / tile.group;
    const bool exists = token < tile.tokens;
    const attention_t* row = static_cast<const attention_t*>(call.q) + column;
    if (exists) row += (tile.token0 + token) * call.q_stride + (tile.kv_head * tile.group + m % tile.group) * S::kDim;
#pragma unroll
    for (int step = 0; step < S::kSteps; ++step) {
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int e = (step < S::kFromV ? S::kRotated + step * 16 : (step - S::kFromV) * 16) + high * 8;
        uint32_t value = 0;
        if (exists && e < S::kCols) value = *reinterpret_cast<const uint32_t*>(row + e);
        if (S::kRotated > 0 && step < S::kFromV) {
          const float2 x = unpack_attention(value), w = *reinterpret_cast<const float2*>(kv.k_norm + column + e);
          value = pack_attention(x.x * w.x, x.y * w.y);
        }
        q[step][2 * high + i] = value;
      }
    }
  }
}

// The key tiles of one run. A warp copies 8 keys of a tile, or a part of their vectors: 64 contiguous bytes of each key
// in one instruction.
template <typename S>
struct RunTiles {
  attention_t* tiles;  // [2, kTile]
  const KvCacheView& kv;
  const Run& run;
  int kv_head;

  // The offset of this lane's key of a tile, or -1 if no row of the run sees it.
  __device__ __forceinline__ int64_t key_offset(int tile) const {
    const int pos = tile * S::kKeys + threadIdx.x / 32 % S::kScores * 8 + threadIdx.x % 8;
    return pos >= run.first && pos <= run.last ? kv_offset(kv, run.seq, pos, kv_head) : -1;
  }

  // Starts the copy of tile `tile`, of which this lane's key has `offset`.
  __device__ __forceinline__ void fetch(int tile, int64_t offset) const {
    constexpr int kEach = 4 * S::kRowSets, kCopies = (S::kVectors + kEach - 1) / kEach;
    const int warp = threadIdx.x / 32, first = warp / S::kScores * 4 + threadIdx.x % 32 / 8;
    const bool valid = offset >= 0;
    const int next = S::kDim == 72 && kv.tiled ? 64 : 8;  // elements from a vector of a row to the next
    const int64_t from = (valid ? offset : 0) + first * next;
    const attention_t *k = static_cast<const attention_t*>(kv.k) + from,
                      *v = static_cast<const attention_t*>(kv.v) + from;
    attention_t* to =
        tiles + tile % 2 * S::kTile + warp % S::kScores * 64 + threadIdx.x % 8 * 8 + first * (S::kVectorBytes / 2);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (S::kVectors % kEach != 0 && first + i * kEach >= S::kVectors) break;
      copy16_async(to + i * kEach * (S::kVectorBytes / 2), v + i * kEach * next, valid);
      if constexpr (S::kRotated == 0) {
        copy16_async(to + S::kPlane + i * kEach * (S::kVectorBytes / 2), k + i * kEach * next, valid);
      }
    }
  }
};

// Scores [16, kKeys] = q keys^T over this warp's part of the depth. `tile`: the tile's shared memory address.
template <typename S>
__device__ __forceinline__ void compute_scores(float (&c)[S::kScores][4], const uint32_t (&q)[S::kSteps][4],
                                               uint32_t tile) {
  constexpr int kBytes = S::kVectorBytes;
  const int lane = threadIdx.x % 32, half = warp_half<S>();
  const uint32_t keys = tile + (S::kRotated ? 0 : S::kPlane * 2);
  // Four core matrices: two vectors of 8 keys, then those of the next 8 keys.
  const uint32_t at = keys + lane % 8 * 16 + lane / 8 % 2 * kBytes + lane / 16 * kCoreBytes;
  const uint32_t from_v = at + (half * S::kColTiles + S::kRotated / 8) * kBytes;
  const uint32_t kept = at + (S::kDim / 8 + half * (S::kRotated / 8)) * kBytes;
#pragma unroll
  for (int t = 0; t < S::kScores; ++t) c[t][0] = c[t][1] = c[t][2] = c[t][3] = 0;
#pragma unroll
  for (int step = 0; step < S::kCols / 16; ++step) {
    const uint32_t row = step < S::kFromV ? from_v + step * 2 * kBytes : kept + (step - S::kFromV) * 2 * kBytes;
#pragma unroll
    for (int t = 0; t < S::kScores; t += 2) {
      uint32_t b[4];
      load_matrices(b, row + t * kCoreBytes);
      multiply(c[t], q[step], b[0], b[1]);
      multiply(c[t + 1], q[step], b[2], b[3]);
    }
  }
  if constexpr (S::kCols % 16 != 0) {  // the last 8 elements of the depth
    const uint32_t(&a)[4] = q[S::kSteps - 1];
#pragma unroll
    for (int t = 0; t < S::kScores; t += 4) {
      uint32_t b[4];  // one vector of 4 x 8 keys
      load_matrices(b, keys + lane * 16 + (S::kColTiles - 1) * kBytes + t * kCoreBytes);
#pragma unroll
      for (int i = 0; i < 4; ++i) multiply_depth8(c[t + i], a[0], a[1], b[i]);
    }
  }
}

// Adds the scores over the other half of the depth. A lane reads what the same lane of the other warp wrote.
template <int kScores>
__device__ __forceinline__ void add_other_half(float (&c)[kScores][4], float4* partials) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float4* mine = partials + warp * 32 * kScores + lane;
  const float4* other = partials + (warp ^ 1) * 32 * kScores + lane;
#pragma unroll
  for (int t = 0; t < kScores; ++t) mine[t * 32] = make_float4(c[t][0], c[t][1], c[t][2], c[t][3]);
  asm volatile("bar.sync %0, 64;" ::"r"(warp / 2 + 1) : "memory");  // the two warps; 0 is __syncthreads()
#pragma unroll
  for (int t = 0; t < kScores; ++t) {
    const float4 x = other[t * 32];
    c[t][0] += x.x, c[t][1] += x.y, c[t][2] += x.z, c[t][3] += x.w;
  }
}

// Sets the scores of keys that a row does not see to -inf. Few tiles need it, so it reads the rows' intervals again.
template <int kScores>
__device__ __forceinline__ void mask(float (&c)[kScores][4], const int4* row_masks, const QueryTile& tile,
                                     const Run& run, int base) {
  RowState rows[2];
  set_intervals(rows, row_masks, tile, run);
  const int key0 = base + threadIdx.x % 4 * 2;
#pragma unroll
  for (int t = 0; t < kScores; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = key0 + t * 8 + i % 2;
      if (key < rows[i / 2].first || key > rows[i / 2].last) c[t][i] = -INFINITY;
    }
  }
}

// sum += weights * values, for this warp's columns. `tile`: the tile's shared memory address.
template <typename S>
__device__ __forceinline__ void add_values(float (&sum)[S::kColTiles][4], const uint32_t (&weights)[S::kKeys / 16][4],
                                           uint32_t tile) {
  constexpr int kBytes = S::kVectorBytes;
  const int lane = threadIdx.x % 32;
  // Four core matrices: one vector of 2 x 8 keys, then the next vector.
  const uint32_t at =
      tile + lane % 8 * 16 + lane / 8 % 2 * kCoreBytes + (lane / 16 + warp_half<S>() * S::kColTiles) * kBytes;
#pragma unroll
  for (int step = 0; step < S::kKeys / 16; ++step) {
#pragma unroll
    for (int t = 0; t + 1 < S::kColTiles; t += 2) {
      uint32_t b[4];
      load_matrices_transposed(b, at + step * 2 * kCoreBytes + t * kBytes);
      multiply(sum[t], weights[step], b[0], b[1]);
      multiply(sum[t + 1], weights[step], b[2], b[3]);
    }
  }
  if constexpr (S::kColTiles % 2 != 0) {
    constexpr int kLast = S::kColTiles - 1;
#pragma unroll
    for (int step = 0; step < S::kKeys / 16; step += 2) {
      uint32_t b[4];  // one vector of 4 x 8 keys
      load_matrices_transposed(b, tile + lane * 16 + step * 2 * kCoreBytes + kLast * kBytes);
      multiply(sum[kLast], weights[step], b[0], b[1]);
      multiply(sum[kLast], weights[step + 1], b[2], b[3]);
    }
  }
}

// All keys of one run, for the whole query tile. While a tile is multiplied the next one arrives, and the addresses of
// the one after it are read from the page table.
template <typename S>
__device__ __forceinline__ void attention_over_run(const Shared<S>& s, const KvCacheView& kv, const QueryTile& query,
                                                   const Run& run, const uint32_t (&q)[S::kSteps][4],
                                                   RowState (&state)[2], float (&sum)[S::kColTiles][4]) {
  const RunTiles<S> tiles = {s.tiles, kv, run, query.kv_head};
  const int begin = run.first / S::kKeys, end = run.last / S::kKeys + 1;
  const uint32_t shared = shared_address(s.tiles);
  tiles.fetch(begin, tiles.key_offset(begin));
  copy_commit();
  int64_t offset = tiles.key_offset(begin + 1);
  for (int tile = begin; tile < end; ++tile) {
    copy_wait<0>();
    __syncthreads();  // the tile is there, and all warps have finished with the one before it
    if (tile + 1 < end) tiles.fetch(tile + 1, offset);
    copy_commit();
    offset = tiles.key_offset(tile + 2);
    const uint32_t at = shared + tile % 2 * S::kTile * 2;
    float c[S::kScores][4];
    uint32_t weights[S::kKeys / 16][4];
    compute_scores<S>(c, q, at);
    if constexpr (S::kShare > 1) add_other_half(c, s.partials);
    if (run.template masked<S::kKeys>(tile * S::kKeys)) mask(c, s.row_masks, query, run, tile * S::kKeys);
    const float2 keep = online_softmax(c, state, tile * S::kKeys, false);
    if (__any_sync(0xffffffffu, keep.x != 1.0f || keep.y != 1.0f)) rescale(sum, keep);
    pack_weights(weights, c);
    add_values<S>(sum, weights, at);
  }
  copy_wait<0>();
  __syncthreads();
}

// Grid: (KV heads, query tiles).
template <typename S>
__global__ void __launch_bounds__(kThreads, S::kBlocks) flash_prefill_mma_kernel(AttentionCall call, KvCacheView kv) {
  extern __shared__ __align__(128) char memory[];
  const Shared<S> s(memory);
  grid_release();
  grid_wait();
  QueryTile tile = query_tile<S::kRows, false>(call, kv);
  tile.first_row = threadIdx.x / 32 / S::kShare * 16 + threadIdx.x % 32 / 4;
  load_row_masks<kThreads>(s.row_masks, call, tile);
  uint32_t q[S::kSteps][4];
  load_query<S>(q, call, kv, tile);
  __syncthreads();
  RowState state[2] = {{1, 0, -INFINITY, 0.0f}, {1, 0, -INFINITY, 0.0f}};
  float sum[S::kColTiles][4] = {};
  for (int begin = 0; begin < tile.tokens;) {
    const Run run = next_run(s.row_masks, begin, tile.tokens);
    attention_over_run<S>(s, kv, tile, run, q, state, sum);
    begin = run.end;
  }
  store_output<S::kDim>(call, tile, warp_half<S>() * S::kCols, state, sum);
}

template <typename S>
void run(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv) {
  static AllowedOn allowed;
  allow_shared_once(flash_prefill_mma_kernel<S>, S::kShared, allowed);
  const int tokens = S::kRows / (call.q_heads / kv.heads);
  launch(stream, dim3(kv.heads, (call.count + tokens - 1) / tokens), kThreads, S::kShared, flash_prefill_mma_kernel<S>,
         call, kv);
}

using Tower = Shape<72, 0, 64, 2>;
using Sliding = Shape<256, 0, 32, 1>;
using Full = Shape<512, 64, 32, 1>;
using FullPlain = Shape<512, 0, 16, 1>;

}  // namespace

bool flash_prefill_mma_fits(const AttentionCall& call, const KvCacheView& kv) {
  const int group = call.q_heads / kv.heads;
  if (!aligned_rows(call.q, call.q_stride) || !aligned_rows(call.out, call.out_stride)) return false;
  if (kv.dim == 72) return kv.rotated == 0 && Tower::kRows % group == 0;
  if (kv.tiled) return false;
  if (kv.dim == 256) return kv.rotated == 0 && Sliding::kRows % group == 0;
  return kv.dim == 512 && (kv.rotated == 0 || kv.rotated == Full::kRotated) && Full::kRows % group == 0;
}

void flash_prefill_mma(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv) {
  if (kv.dim == 72) return run<Tower>(stream, call, kv);
  if (kv.dim == 256) return run<Sliding>(stream, call, kv);
  if (kv.rotated) return run<Full>(stream, call, kv);
  run<FullPlain>(stream, call, kv);
}

}  // namespace gemma4::cuda
