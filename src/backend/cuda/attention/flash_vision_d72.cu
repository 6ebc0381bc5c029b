// flash_vision: attention over whole images (head size 72, one KV head for each query head, a cache without a page
// table). The tensor cores bound the speed: 64 rows by 64 keys take 304 cycles of wgmma, and 256 cycles of the unit
// that computes exp2.
//
// A CTA has five warpgroups of 64 rows each. A warpgroup computes scores, softmax and output in sequence; the tensor
// cores stay busy because the five warpgroups are at different points of this sequence. There are no registers for more
// overlap within a warpgroup (96 for each thread). With 320 rows in a CTA the 2520 patches of a usual image also make
// one wave: 8 tiles x 16 heads for 132 SMs.
//
// The cache stores keys and values in the order in which wgmma reads them from shared memory (KvCacheView::tiled). So a
// tile of 64 keys of one head is contiguous, and one thread starts its bulk copy four tiles ahead. (A producer warp of
// its own would leave 80 registers to the other warps.)
#include <climits>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/device/activation.cuh"
#include "backend/cuda/device/cp_async.cuh"
#include "backend/cuda/device/element.cuh"
#include "backend/cuda/device/tma.cuh"
#include "backend/cuda/device/wgmma.cuh"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/launch.cuh"

#pragma nv_diag_suppress 177  // constants that a device without wgmma has no use for

namespace gemma4::cuda {
namespace {

using Element = attention_t;

constexpr int kDim = 72, kVectors = kDim / 8;  // of 8 elements, 16 bytes
constexpr int kDepthVectors = kVectors + 1;    // of the query: 72 is no multiple of 16, so its tenth vector is zeros
constexpr int kKeys = 64;                      // of a tile
constexpr int kTileBytes = kKeys * kDim * 2;
constexpr int kStageBytes = 2 * kTileBytes;  // keys, then values
// Softmax weights are relative to a running maximum. It moves only when a score exceeds it by more than this power of
// two: a weight up to that size is exact enough in 16 bits, and moving the maximum costs a multiplication of all sums.
constexpr float kGrowth = 8;

// Tiles are core matrices of 8 rows x 16 bytes, those of 8 rows one after the other. The tenth vector of the keys'
// depth is the first vector of the next 8 keys or, at the end, of the values. Any finite value will do, since the query
// has zeros there.
constexpr int kCoreBytes = 128, kKeyRowBytes = kVectors * kCoreBytes, kQueryRowBytes = kDepthVectors * kCoreBytes;

template <int kGroups_, int kBlocks_, int kStages_>
struct Shape {
  static constexpr int kGroups = kGroups_;       // warpgroups
  static constexpr int kBlocks = kBlocks_;       // CTAs on an SM
  static constexpr int kStages = kStages_;       // tiles in shared memory
  static constexpr int kPrefetch = kStages / 2;  // prefetch depth in tiles
  static constexpr int kRows = 64 * kGroups, kThreads = 128 * kGroups, kWarps = 4 * kGroups;
  static constexpr int kQueryBytes = kRows / 8 * kQueryRowBytes;
  static constexpr size_t kShared = kQueryBytes + kStages * kStageBytes + 2 * kStages * sizeof(uint64_t);
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr unsigned kLanes = 0xffffffffu;

#define FLOATS4(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define FLOATS32(d) \
  FLOATS4(d, 0), FLOATS4(d, 1), FLOATS4(d, 2), FLOATS4(d, 3), FLOATS4(d, 4), FLOATS4(d, 5), FLOATS4(d, 6), FLOATS4(d, 7)

// scores[64, 64] = a b, or scores + a b; both operands K-major in shared memory.
#define SCORES(types)                                                                                \
  asm volatile(                                                                                      \
      "{.reg .pred p; setp.ne.b32 p, %34, 0; "                                                       \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." types                                            \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;}"       \
      : FLOATS32(c)                                                                                  \
      : "l"(a), "l"(b), "r"(static_cast<int>(add)))
// sum[64, 72] += a b; a in registers, b MN-major in shared memory.
#define SUMS(types)                                                                                           \
  asm volatile("wgmma.mma_async.sync.aligned.m64n72k16.f32." types                                            \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35}, "            \
               "{%36, %37, %38, %39}, %40, 1, 1, 1, 1;"                                                       \
               : FLOATS32(sum), FLOATS4(sum, 8)                                                               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

__device__ __forceinline__ void multiply_scores(float (&c)[8][4], uint64_t a, uint64_t b, bool add) {
  SCORES(ATTENTION_OPERANDS);
}
__device__ __forceinline__ void multiply_sums(float (&sum)[9][4], const uint32_t (&a)[4], uint64_t b) {
  SUMS(ATTENTION_OPERANDS);
}
#undef SUMS
#undef SCORES
#undef FLOATS32
#undef FLOATS4

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kLanes, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kLanes, x, 1);
  return x + __shfl_xor_sync(kLanes, x, 2);
}

struct Interval {
  int first = INT_MAX, last = INT_MIN;          // keys that at least one row sees
  int all_first = INT_MIN, all_last = INT_MAX;  // keys that every row sees
};

// The keys that the CTA's rows see, and those that the rows of warpgroup `group` see. Every warp computes them itself.
template <typename S>
__device__ __forceinline__ void intervals(const AttentionCall& call, int row0, int group, Interval& block,
                                          Interval& mine) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < S::kRows / 32; ++i) {
    const int row = row0 + i * 32 + lane;
    if (row >= call.count) continue;
    const int4 row_mask = reinterpret_cast<const int4*>(call.rows)[row];
    block.first = min(block.first, row_mask.z), block.last = max(block.last, row_mask.w);
    if (i / 2 != group) continue;
    mine.first = min(mine.first, row_mask.z), mine.last = max(mine.last, row_mask.w);
    mine.all_first = max(mine.all_first, row_mask.z), mine.all_last = min(mine.all_last, row_mask.w);
  }
  block.first = __reduce_min_sync(kLanes, block.first), block.last = __reduce_max_sync(kLanes, block.last);
  mine.first = __reduce_min_sync(kLanes, mine.first), mine.last = __reduce_max_sync(kLanes, mine.last);
  mine.all_first = __reduce_max_sync(kLanes, mine.all_first);
  mine.all_last = __reduce_min_sync(kLanes, mine.all_last);
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// x, which is equal in all lanes: now the compiler knows that, and it cannot recompute x at each use.
__device__ __forceinline__ uint32_t uniform_in_warp(uint32_t x) { return __reduce_max_sync(kLanes, x); }

// The pipeline of key and value tiles in shared memory. The first warp of the first warpgroup starts the copies.
// Another warpgroup may be up to kPrefetch tiles before that one, and less than kStages - kPrefetch tiles behind it.
template <typename S>
struct Pipeline {
  uint32_t stages;            // shared memory address of the first
  uint32_t full, empty;       // [kStages] mbarriers each: the tile has arrived; all warps have finished with it
  const char *keys, *values;  // of the first tile
  int tiles;

  // Called by the whole first warp. With a branch for one thread the compiler would no longer see that the loop's
  // variables are uniform, and descriptors would cost four times the instructions.
  __device__ __forceinline__ void fetch(int tile) const {
    if (tile >= tiles) return;
    const uint32_t stage = tile % S::kStages, barrier = full + stage * 8, to = stages + stage * kStageBytes;
    if (tile >= S::kStages) barrier_wait(empty + stage * 8, (tile / S::kStages - 1) & 1);
    const char *k = keys + int64_t{tile} * kTileBytes, *v = values + int64_t{tile} * kTileBytes;
    asm volatile(
        "{.reg .pred one; setp.eq.u32 one, %0, 0;\n"
        "@one mbarrier.arrive.expect_tx.shared::cta.b64 _, [%1], %2;\n"
        "@one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%3], [%5], %7, [%1];\n"
        "@one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%4], [%6], %7, [%1];}" ::"r"(
            threadIdx.x),
        "r"(barrier), "r"(kStageBytes), "r"(to), "r"(to + kTileBytes), "l"(k), "l"(v), "r"(kTileBytes)
        : "memory");
  }
};

// The two rows of a lane: c[.][2 * half + i] belongs to row lane / 4 + 8 * half of its warp.
struct RowState {
  float shift = -INFINITY;  // log2 of the running maximum that weights are relative to; -inf: no key seen yet
  float total = 0;          // sum of this lane's weights
};

// Sets the scores of keys that a row does not see to -inf. Few tiles need it, so it reads the rows' intervals again.
__device__ __forceinline__ void mask(float (&c)[kKeys / 8][4], const AttentionCall& call, int warp_row, int key0) {
  const int lane = threadIdx.x % 32;
  int4 row_masks[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp_row + lane / 4 + half * 8;
    row_masks[half] = row < call.count ? reinterpret_cast<const int4*>(call.rows)[row] : make_int4(0, 0, 1, 0);
  }
#pragma unroll
  for (int t = 0; t < kKeys / 8; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = key0 + t * 8 + lane % 4 * 2 + i % 2;
      if (key < row_masks[i / 2].z || key > row_masks[i / 2].w) c[t][i] = -INFINITY;
    }
  }
}

// A wgmma descriptor (device/wgmma.cuh) of the operand at a shared memory address.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  return static_cast<uint64_t>(stride / 16) << 32 | (leading / 16 << 16 | (address & 0x3ffff) / 16);
}

// Moves the running maximum to the largest score so far, and rescales scores and sums.
__device__ __forceinline__ void move_shift(float (&c)[kKeys / 8][4], RowState (&state)[2], float (&sum)[kVectors][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -INFINITY;
#pragma unroll
    for (int t = 0; t < kKeys / 8; ++t) top = fmaxf(top, fmaxf(c[t][2 * half], c[t][2 * half + 1]));
    top = quad_max(top);
    RowState& row = state[half];
    const bool fresh = row.shift == -INFINITY;
    if (fresh && top == -INFINITY) continue;  // the whole quad agrees, and the other lanes have sums of this row
    const float by = fresh ? top : fmaxf(top, 0.0f), factor = fresh ? 1.0f : exp2_fast(-by);
    row.shift = fresh ? by : row.shift + by;
    row.total *= factor;
#pragma unroll
    for (int t = 0; t < kKeys / 8; ++t) c[t][2 * half] -= by, c[t][2 * half + 1] -= by;
#pragma unroll
    for (int t = 0; t < kVectors; ++t) sum[t][2 * half] *= factor, sum[t][2 * half + 1] *= factor;
  }
}

// Turns scores into softmax weights.
__device__ __forceinline__ void online_softmax(float (&c)[kKeys / 8][4], uint32_t (&weights)[kKeys / 16][4],
                                               RowState (&state)[2], float (&sum)[kVectors][4]) {
  const bool fresh = state[0].shift == -INFINITY || state[1].shift == -INFINITY;
  const float shift[2] = {state[0].shift == -INFINITY ? 0 : state[0].shift,
                          state[1].shift == -INFINITY ? 0 : state[1].shift};
  int most[2] = {INT_MIN, INT_MIN};  // positive floats compare as their bits do
#pragma unroll
  for (int t = 0; t < kKeys / 8; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[t][i] = fmaf(c[t][i], kLog2e, -shift[i / 2]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      most[i] = __vimax3_s32(most[i], __float_as_int(c[t][2 * i]), __float_as_int(c[t][2 * i + 1]));
    }
  }
  if (__any_sync(kLanes, fresh || max(most[0], most[1]) > __float_as_int(kGrowth))) move_shift(c, state, sum);
#pragma unroll
  for (int t = 0; t < kKeys / 8; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float low = exp2_fast(c[t][2 * half]), high = exp2_fast(c[t][2 * half + 1]);
      state[half].total += low + high;
      weights[t / 2][t % 2 * 2 + half] = pack_attention(low, high);
    }
  }
}

// Starts the copy of the warpgroup's 64 rows of the query. Rows that do not exist and the tenth vector are zeros.
__device__ __forceinline__ void fetch_query(char* to, const AttentionCall& call, int row0, int head) {
  const Element* from = static_cast<const Element*>(call.q) + head * kDim;
  for (int i = threadIdx.x % 128; i < 64 * kDepthVectors; i += 128) {
    const int row = i / kDepthVectors, vec = i % kDepthVectors;
    const bool exists = row0 + row < call.count && vec < kVectors;
    copy16_async(to + row / 8 * kQueryRowBytes + vec * kCoreBytes + row % 8 * 16,
                 from + (exists ? (row0 + row) * call.q_stride + vec * 8 : 0), exists);
  }
  copy_commit();
}

// Attention of a warpgroup's rows over all key tiles. This warp has the 16 rows from warp_row on.
template <typename S>
__device__ __forceinline__ void attention_over_tiles(const AttentionCall& call, int warp, int warp_row, uint32_t query,
                                                     const Pipeline<S>& pipeline, int key0, const Interval& visible,
                                                     RowState (&state)[2], float (&sum)[kVectors][4]) {
  const uint64_t q = descriptor(query, kCoreBytes, kQueryRowBytes);
  const uint64_t k = descriptor(pipeline.stages, kCoreBytes, kKeyRowBytes);
  const uint64_t v = descriptor(pipeline.stages + kTileBytes, kKeyRowBytes, kCoreBytes);
  for (int tile = 0, key = key0; tile < pipeline.tiles; ++tile, key += kKeys) {
    const uint32_t stage = tile % S::kStages;
    const uint64_t at = stage * (kStageBytes / 16);  // descriptors count in units of 16 bytes
    if (warp == 0) pipeline.fetch(tile + S::kPrefetch);
    barrier_wait(pipeline.full + stage * 8, tile / S::kStages & 1);
    if (key <= visible.last && key + kKeys > visible.first) {
      float c[kKeys / 8][4];
      uint32_t weights[kKeys / 16][4];
      group_fence();
#pragma unroll
      for (int step = 0; step < kDepthVectors / 2; ++step) {
        multiply_scores(c, q + step * 2 * kCoreBytes / 16, k + at + step * 2 * kCoreBytes / 16, step > 0);
      }
      group_commit();
      group_wait<0>();
      pin(c);
      if (key < visible.all_first || key + kKeys - 1 > visible.all_last) mask(c, call, warp_row, key);
      online_softmax(c, weights, state, sum);
      pin(sum);
      group_fence();
#pragma unroll
      for (int step = 0; step < kKeys / 16; ++step) {
        multiply_registers(sum, weights[step], v + at + step * 2 * kKeyRowBytes / 16);
      }
      group_commit();
      group_wait<0>();
      pin(sum);
    }
    if (threadIdx.x % 32 == 0) barrier_arrive(pipeline.empty + stage * 8);
  }
}

__device__ __forceinline__ void store_rows(const AttentionCall& call, int row0, int head, const RowState (&state)[2],
                                           const float (&sum)[kVectors][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row0 + lane / 4 + half * 8;
    const float total = quad_sum(state[half].total), factor = total > 0 ? 1.0f / total : 0.0f;
    if (row >= call.count) continue;
    auto* out = static_cast<__nv_bfloat16*>(call.out) + row * call.out_stride + head * kDim + lane % 4 * 2;
#pragma unroll
    for (int t = 0; t < kVectors; ++t) {
      *reinterpret_cast<uint32_t*>(out + t * 8) = pack_bf16x2(sum[t][2 * half] * factor, sum[t][2 * half + 1] * factor);
    }
  }
}

#endif

// Grid: (query tiles, heads), so that CTAs that run together read the keys of few heads.
template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) flash_vision_kernel(AttentionCall call, KvCacheView kv) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) char memory[];
  const int row0 = blockIdx.x * S::kRows, head = blockIdx.y;
  const int warp = uniform_in_warp(threadIdx.x / 32), group = warp / 4;
  char* query = memory + group * 64 / 8 * kQueryRowBytes;
  auto* barriers = reinterpret_cast<uint64_t*>(memory + S::kQueryBytes + S::kStages * kStageBytes);
  const uint32_t shared = uniform_in_warp(shared_address(memory));
  Pipeline<S> pipeline;
  pipeline.stages = shared + S::kQueryBytes;
  pipeline.full = pipeline.stages + S::kStages * kStageBytes, pipeline.empty = pipeline.full + S::kStages * 8;
  grid_release();
  if (threadIdx.x < 2 * S::kStages) {
    barrier_init(&barriers[threadIdx.x], threadIdx.x < S::kStages ? 1 : S::kWarps);
    barrier_init_done();
  }
  __syncthreads();
  grid_wait();
  fetch_query(query, call, row0 + group * 64, head);
  Interval block, mine;
  intervals<S>(call, row0, group, block, mine);
  const int key0 = block.first / kKeys * kKeys;
  const int64_t at = (int64_t{head} * kv.page + key0) * kDim;
  pipeline.keys = reinterpret_cast<const char*>(static_cast<const Element*>(kv.k) + at);
  pipeline.values = reinterpret_cast<const char*>(static_cast<const Element*>(kv.v) + at);
  pipeline.tiles = block.last < block.first ? 0 : (block.last - key0) / kKeys + 1;
  for (int tile = 0; warp == 0 && tile < S::kPrefetch; ++tile) pipeline.fetch(tile);
  copy_wait<0>();
  fence_async();
  asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");  // 0 is __syncthreads()
  const int warp_row = row0 + warp * 16;
  RowState state[2];
  float sum[kVectors][4] = {};
  attention_over_tiles<S>(call, warp, warp_row, shared + group * 64 / 8 * kQueryRowBytes, pipeline, key0, mine, state,
                          sum);
  store_rows(call, warp_row, head, state, sum);
#else
  __trap();
#endif
}

template <typename S>
void run(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv) {
  static AllowedOn allowed;
  allow_shared_once(flash_vision_kernel<S>, S::kShared, allowed);
  launch(stream, dim3((call.count + S::kRows - 1) / S::kRows, call.q_heads), S::kThreads, S::kShared,
         flash_vision_kernel<S>, call, kv);
}

using Large = Shape<5, 1, 8>;
using Small = Shape<2, 2, 5>;

}  // namespace

bool flash_vision_fits(const AttentionCall& call, const KvCacheView& kv) {
  const auto aligned = [](const void* p, int64_t stride, int bytes) {
    return reinterpret_cast<uintptr_t>(p) % bytes == 0 && stride * 2 % bytes == 0;
  };
  return kv.tiled && kv.dim == kDim && kv.page % kKeys == 0 && !kv.table && call.q_heads == kv.heads &&
         aligned_rows(call.q, call.q_stride) && aligned_rows(call.out, call.out_stride, 4);
}

void flash_vision(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv, int sms) {
  const int ctas = (call.count + Large::kRows - 1) / Large::kRows * call.q_heads;
  if (ctas * 2 < sms) return run<Small>(stream, call, kv);  // small images: more, smaller CTAs
  run<Large>(stream, call, kv);
}

}  // namespace gemma4::cuda
