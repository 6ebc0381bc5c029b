// Attention over whole images (head size 72, one KV head a query head, a cache without a page table). The tensor cores
// bound it: 64 rows by 64 keys are 304 cycles of products, and 256 of the unit that computes exp2.
//
// A block is five warpgroups of 64 rows each. A warpgroup does one thing after the other: scores, softmax, sums; what
// keeps the tensor cores busy is that the five are at different points of it. No registers are left for more (96 a
// thread). 320 rows also make one wave of the 2520 patches of a usual image: 8 tiles x 16 heads for 132
// multiprocessors.
//
// The cache keeps keys and values in the order in which the tensor cores want them in shared memory
// (KvCacheView::tiled), so that a tile of 64 keys of one head is one piece of memory, and one thread asks the copy
// engine for it four tiles ahead. (A warp for that alone would leave the others 80 registers.)
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

using Element = attend_t;

constexpr int kDim = 72, kChunks = kDim / 8;  // a chunk: 8 elements, 16 bytes
constexpr int kDepthChunks = kChunks + 1;     // of the query: 72 is no multiple of 16, so its tenth chunk is zeros
constexpr int kKeys = 64;                     // of a tile
constexpr int kTileBytes = kKeys * kDim * 2;
constexpr int kStageBytes = 2 * kTileBytes;  // keys, then values
// Weights are relative to a running maximum that moves only when a score exceeds it by more than this power of two: any
// such weight is exact enough in 16 bits, and moving it costs a multiplication of all sums.
constexpr float kGrowth = 8;

// Tiles are core matrices of 8 rows x 16 bytes, those of 8 rows one after the other. The depth's tenth chunk of keys is
// the first chunk of the next 8 keys or, at the end, of the values: anything finite, since the query has zeros there.
constexpr int kCoreBytes = 128, kKeyRowBytes = kChunks * kCoreBytes, kQueryRowBytes = kDepthChunks * kCoreBytes;

template <int kGroups_, int kBlocks_, int kStages_>
struct Shape {
  static constexpr int kGroups = kGroups_;    // warpgroups
  static constexpr int kBlocks = kBlocks_;    // on a multiprocessor
  static constexpr int kStages = kStages_;    // tiles in shared memory
  static constexpr int kAhead = kStages / 2;  // tiles asked for before the one that is computed
  static constexpr int kRows = 64 * kGroups, kThreads = 128 * kGroups, kWarps = 4 * kGroups;
  static constexpr int kQueryBytes = kRows / 8 * kQueryRowBytes;
  static constexpr size_t kShared = kQueryBytes + kStages * kStageBytes + 2 * kStages * sizeof(uint64_t);
};

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr unsigned kLanes = 0xffffffffu;

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kLanes, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kLanes, x, 1);
  return x + __shfl_xor_sync(kLanes, x, 2);
}

struct Interval {
  int first = INT_MAX, last = INT_MIN;          // keys that some row sees
  int all_first = INT_MIN, all_last = INT_MAX;  // keys that every row sees
};

// What the block's rows see, and what those of warpgroup `group` see; every warp works it out for itself.
template <typename S>
__device__ __forceinline__ void intervals(const AttendCall& call, int row0, int group, Interval& block,
                                          Interval& mine) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < S::kRows / 32; ++i) {
    const int row = row0 + i * 32 + lane;
    if (row >= call.count) continue;
    const int4 see = reinterpret_cast<const int4*>(call.rows)[row];
    block.first = min(block.first, see.z), block.last = max(block.last, see.w);
    if (i / 2 != group) continue;
    mine.first = min(mine.first, see.z), mine.last = max(mine.last, see.w);
    mine.all_first = max(mine.all_first, see.z), mine.all_last = min(mine.all_last, see.w);
  }
  block.first = __reduce_min_sync(kLanes, block.first), block.last = __reduce_max_sync(kLanes, block.last);
  mine.first = __reduce_min_sync(kLanes, mine.first), mine.last = __reduce_max_sync(kLanes, mine.last);
  mine.all_first = __reduce_max_sync(kLanes, mine.all_first);
  mine.all_last = __reduce_min_sync(kLanes, mine.all_last);
}

__device__ __forceinline__ void wait_at(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void arrive_at(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// A number that is the same in all lanes, in a way that the compiler knows of and cannot work out anew at each use.
__device__ __forceinline__ uint32_t same_in_all(uint32_t x) { return __reduce_max_sync(kLanes, x); }

// The tiles of keys and values that a block needs, in shared memory one after the other. Warpgroups may be kAhead tiles
// before the first, which asks for tiles, and less than kStages - kAhead behind.
template <typename S>
struct Ring {
  uint32_t stages;            // address of the first
  uint32_t full, empty;       // of [kStages] barriers: the bytes are there; every warp has done with them
  const char *keys, *values;  // of the first tile
  int tiles;

  // Called by the whole first warp: with a branch for one thread the compiler no longer sees that the loop's numbers
  // are the same in every lane, and descriptors cost four times the instructions.
  __device__ __forceinline__ void fetch(int tile) const {
    if (tile >= tiles) return;
    const uint32_t stage = tile % S::kStages, barrier = full + stage * 8, to = stages + stage * kStageBytes;
    if (tile >= S::kStages) wait_at(empty + stage * 8, (tile / S::kStages - 1) & 1);
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
  float shift = -INFINITY;  // log2 of what weights are relative to; -inf: no key seen yet
  float total = 0;          // of this lane's weights
};

// Few tiles need it, so what a row sees is read again.
__device__ __forceinline__ void mask(float (&c)[kKeys / 8][4], const AttendCall& call, int warp_row, int key0) {
  const int lane = threadIdx.x % 32;
  int4 see[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp_row + lane / 4 + half * 8;
    see[half] = row < call.count ? reinterpret_cast<const int4*>(call.rows)[row] : make_int4(0, 0, 1, 0);
  }
#pragma unroll
  for (int t = 0; t < kKeys / 8; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = key0 + t * 8 + lane % 4 * 2 + i % 2;
      if (key < see[i / 2].z || key > see[i / 2].w) c[t][i] = -INFINITY;
    }
  }
}

// A descriptor (device/group.cuh) from an address.
__device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t leading, uint32_t stride) {
  return static_cast<uint64_t>(stride / 16) << 32 | (leading / 16 << 16 | (address & 0x3ffff) / 16);
}

// Moves what the weights are relative to, to the largest score so far.
__device__ __forceinline__ void move_shift(float (&c)[kKeys / 8][4], RowState (&state)[2], float (&sum)[kChunks][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -INFINITY;
#pragma unroll
    for (int t = 0; t < kKeys / 8; ++t) top = fmaxf(top, fmaxf(c[t][2 * half], c[t][2 * half + 1]));
    top = quad_max(top);
    RowState& row = state[half];
    const bool fresh = row.shift == -INFINITY;
    if (fresh && top == -INFINITY) continue;  // the same in the whole quad, and the others have sums of this row
    const float by = fresh ? top : fmaxf(top, 0.0f), factor = fresh ? 1.0f : exp2_fast(-by);
    row.shift = fresh ? by : row.shift + by;
    row.total *= factor;
#pragma unroll
    for (int t = 0; t < kKeys / 8; ++t) c[t][2 * half] -= by, c[t][2 * half + 1] -= by;
#pragma unroll
    for (int t = 0; t < kChunks; ++t) sum[t][2 * half] *= factor, sum[t][2 * half + 1] *= factor;
  }
}

// Turns scores into weights.
__device__ __forceinline__ void soften(float (&c)[kKeys / 8][4], uint32_t (&weights)[kKeys / 16][4],
                                       RowState (&state)[2], float (&sum)[kChunks][4]) {
  const bool fresh = state[0].shift == -INFINITY || state[1].shift == -INFINITY;
  const float shift[2] = {state[0].shift == -INFINITY ? 0 : state[0].shift,
                          state[1].shift == -INFINITY ? 0 : state[1].shift};
  int most[2] = {INT_MIN, INT_MIN};  // of positive numbers the largest bits belong to the largest number
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
      weights[t / 2][t % 2 * 2 + half] = pack_attend(low, high);
    }
  }
}

// Starts the copy of the warpgroup's 64 rows of the query; rows that do not exist and the tenth chunk are zeros.
__device__ __forceinline__ void fetch_query(char* to, const AttendCall& call, int row0, int head) {
  const Element* from = static_cast<const Element*>(call.q) + head * kDim;
  for (int i = threadIdx.x % 128; i < 64 * kDepthChunks; i += 128) {
    const int row = i / kDepthChunks, chunk = i % kDepthChunks;
    const bool exists = row0 + row < call.count && chunk < kChunks;
    copy16_async(to + row / 8 * kQueryRowBytes + chunk * kCoreBytes + row % 8 * 16,
                 from + (exists ? (row0 + row) * call.q_stride + chunk * 8 : 0), exists);
  }
  copy_commit();
}

// All tiles for a warpgroup's rows, of which this warp has those from warp_row on.
template <typename S>
__device__ __forceinline__ void attend_tiles(const AttendCall& call, int warp, int warp_row, uint32_t query,
                                             const Ring<S>& ring, int key0, const Interval& see, RowState (&state)[2],
                                             float (&sum)[kChunks][4]) {
  const uint64_t q = operand(query, kCoreBytes, kQueryRowBytes);
  const uint64_t k = operand(ring.stages, kCoreBytes, kKeyRowBytes);
  const uint64_t v = operand(ring.stages + kTileBytes, kKeyRowBytes, kCoreBytes);
  for (int tile = 0, key = key0; tile < ring.tiles; ++tile, key += kKeys) {
    const uint32_t stage = tile % S::kStages;
    const uint64_t at = stage * (kStageBytes / 16);  // descriptors count 16 bytes
    if (warp == 0) ring.fetch(tile + S::kAhead);
    wait_at(ring.full + stage * 8, tile / S::kStages & 1);
    if (key <= see.last && key + kKeys > see.first) {
      float c[kKeys / 8][4];
      uint32_t weights[kKeys / 16][4];
      group_fence();
#pragma unroll
      for (int step = 0; step < kDepthChunks / 2; ++step) {
        multiply_shared(c, q + step * 2 * kCoreBytes / 16, k + at + step * 2 * kCoreBytes / 16, step > 0);
      }
      group_commit();
      group_wait<0>();
      pin(c);
      if (key < see.all_first || key + kKeys - 1 > see.all_last) mask(c, call, warp_row, key);
      soften(c, weights, state, sum);
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
    if (threadIdx.x % 32 == 0) arrive_at(ring.empty + stage * 8);
  }
}

__device__ __forceinline__ void store_rows(const AttendCall& call, int row0, int head, const RowState (&state)[2],
                                           const float (&sum)[kChunks][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row0 + lane / 4 + half * 8;
    const float total = quad_sum(state[half].total), factor = total > 0 ? 1.0f / total : 0.0f;
    if (row >= call.count) continue;
    auto* out = static_cast<__nv_bfloat16*>(call.out) + row * call.out_stride + head * kDim + lane % 4 * 2;
#pragma unroll
    for (int t = 0; t < kChunks; ++t) {
      *reinterpret_cast<uint32_t*>(out + t * 8) = pack_bf16x2(sum[t][2 * half] * factor, sum[t][2 * half + 1] * factor);
    }
  }
}

#endif

// Grid: (query tiles, heads): blocks that run together read the keys of few heads.
template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) vision_kernel(AttendCall call, KvCacheView kv) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) char memory[];
  const int row0 = blockIdx.x * S::kRows, head = blockIdx.y;
  const int warp = same_in_all(threadIdx.x / 32), group = warp / 4;
  char* query = memory + group * 64 / 8 * kQueryRowBytes;
  auto* barriers = reinterpret_cast<uint64_t*>(memory + S::kQueryBytes + S::kStages * kStageBytes);
  const uint32_t shared = same_in_all(shared_address(memory));
  Ring<S> ring;
  ring.stages = shared + S::kQueryBytes;
  ring.full = ring.stages + S::kStages * kStageBytes, ring.empty = ring.full + S::kStages * 8;
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
  ring.keys = reinterpret_cast<const char*>(static_cast<const Element*>(kv.k) + at);
  ring.values = reinterpret_cast<const char*>(static_cast<const Element*>(kv.v) + at);
  ring.tiles = block.last < block.first ? 0 : (block.last - key0) / kKeys + 1;
  for (int tile = 0; warp == 0 && tile < S::kAhead; ++tile) ring.fetch(tile);
  copy_wait<0>();
  fence_async();
  asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");  // 0 is __syncthreads()
  const int warp_row = row0 + warp * 16;
  RowState state[2];
  float sum[kChunks][4] = {};
  attend_tiles<S>(call, warp, warp_row, shared + group * 64 / 8 * kQueryRowBytes, ring, key0, mine, state, sum);
  store_rows(call, warp_row, head, state, sum);
#else
  __trap();
#endif
}

template <typename S>
void run(cudaStream_t stream, const AttendCall& call, const KvCacheView& kv) {
  static AllowedOn allowed;
  allow_shared_once(vision_kernel<S>, S::kShared, allowed);
  launch(stream, dim3((call.count + S::kRows - 1) / S::kRows, call.q_heads), S::kThreads, S::kShared, vision_kernel<S>,
         call, kv);
}

using Large = Shape<5, 1, 8>;
using Small = Shape<2, 2, 5>;

}  // namespace

bool vision_fits(const AttendCall& call, const KvCacheView& kv) {
  return kv.tiled && kv.dim == kDim && kv.page % kKeys == 0 && !kv.table && call.q_heads == kv.heads &&
         aligned_rows(call.q, call.q_stride) && aligned_rows(call.out, call.out_stride, 4);
}

void attend_vision(cudaStream_t stream, const AttendCall& call, const KvCacheView& kv, int multiprocessors) {
  const int blocks = (call.count + Large::kRows - 1) / Large::kRows * call.q_heads;
  if (blocks * 2 < multiprocessors) return run<Small>(stream, call, kv);  // small images: more, smaller blocks
  run<Large>(stream, call, kv);
}

}  // namespace gemma4::cuda
