// What the parts of the step kernel share: the ring of shared memory, its layout, and how blocks wait for each other.
#pragma once

#include "backend/cuda/device/load.cuh"
#include "backend/cuda/linear_stream.cuh"
#include "backend/cuda/step.h"

namespace gemma4::cuda {

constexpr int kStepThreads = (kStreamWarps + 1) * 32;  // eight warps compute, one copies
constexpr int kComputeThreads = kStreamWarps * 32;
constexpr int kStageChunks = 4;  // column chunks of a panel in a stage
constexpr int kTileKeys = 16;    // keys in a stage
constexpr int kRowPad = 8;       // elements between rows of a tile of keys: rows start in different banks

// A stage holds four chunks (18,944 bytes of int4 in groups of 32) or 16 rows of 640 + 8 elements of a compressed
// cache.
constexpr int kStageBytes = kTileKeys * (640 + kRowPad) * 2;
static_assert(kStageBytes % 128 == 0 && kStageBytes >= kStageChunks * kPanelChunks * Int4Codec<2>::kBytes);

// Of x, a chunk of 64: digits [half][high, low][lane c][8 bytes], then facts [half] of {minus the sum, unit}.
constexpr int kDigitBytes = 128, kFactBytes = 16;
constexpr int kDigitsBytes = kStepChunks * kDigitBytes + kDigitBytes;  // lanes of a last odd chunk read one further
constexpr int kInputBytes = kDigitsBytes + kStepChunks * kFactBytes;

// Shared memory: the ring, then x as digits and facts or attention's scratch (never both), then the residual stream.
constexpr int kScratchBytes = 16896;
static_assert(kScratchBytes >= kInputBytes && kScratchBytes % 128 == 0);
constexpr int kStepStages = 9;
constexpr int kStepShared = kStepStages * kStageBytes + kScratchBytes + kStepDim * 4;

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // bulk copies and their barriers
struct RingState {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStepStages) stage = 0, phase ^= 1;
  }
};

// Stages under way at a time. Two keep memory busy (3 TB/s for 1.2 us are 27 KB a multiprocessor); all nine would too,
// but whatever else a block asks for, an answer of another block above all, then queues behind 20 MB: a step of the 31B
// takes 7.18 ms with 2, 7.30 with 3, 7.36 with 4, 7.43 with 6, 7.47 with 9.
constexpr int kFlight = 2;

// The copying warp's place in the ring, and the stage that has to be there before the next is asked for.
struct CopyState : RingState {
  RingState landed;
  int ahead = 0;  // stages asked for beyond it
  __device__ __forceinline__ void next() { RingState::next(), ++ahead; }
};

struct Ring {
  uint8_t* stages;
  uint64_t *full, *empty;
  // Before each stage: room for it, and no more than kFlight under way.
  __device__ __forceinline__ void wait_turn(CopyState& s) const {
    wait_empty(s);
    if (s.ahead >= kFlight) wait_full(s.landed), s.landed.next(), --s.ahead;
  }
  __device__ __forceinline__ uint8_t* at(const RingState& s) const { return stages + s.stage * kStageBytes; }
  __device__ __forceinline__ void wait_full(const RingState& s) const { barrier_wait(&full[s.stage], s.phase); }
  __device__ __forceinline__ void wait_empty(const RingState& s) const { barrier_wait(&empty[s.stage], s.phase ^ 1); }
  __device__ __forceinline__ void release(const RingState& s) const {  // by each computing warp
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(&empty[s.stage]);
  }
};

// Among the computing warps.
__device__ __forceinline__ void compute_barrier() { asm volatile("bar.sync 1, %0;" ::"n"(kComputeThreads) : "memory"); }

// Units (panel, column chunk) of a product that fall to this block, in pieces of a stage.
struct Pieces {
  int left, chunks, panel, col, length;
  __device__ __forceinline__ Pieces(const Range& range, int chunks_)
      : left(range.end - range.begin),
        chunks(chunks_),
        panel(range.begin / chunks_),
        col(range.begin - panel * chunks_) {
    measure();
  }
  __device__ __forceinline__ void measure() { length = min(min(left, chunks - col), kStageChunks); }
  __device__ __forceinline__ bool more() const { return left > 0; }
  __device__ __forceinline__ bool ends_panel() const { return col + length == chunks; }
  __device__ __forceinline__ void next() {
    left -= length, col += length;
    if (col == chunks) col = 0, ++panel;
    measure();
  }
};

// A product of fewer units than blocks leaves the last blocks without.
__device__ __forceinline__ int working_blocks(const StepLinear& op) {
  return static_cast<int>(min(gridDim.x, static_cast<unsigned>(op.panels) * op.chunks));
}
__device__ __forceinline__ Range range_of(const StepLinear& op) {
  const int blocks = working_blocks(op), block = min(static_cast<int>(blockIdx.x), blocks);
  Range range(block, blocks, static_cast<uint32_t>(op.panels) * op.chunks);
  if (block == blocks) range.end = range.begin;
  return range;
}

// The tiles of keys that fall to this block: begin .. end-1 of `active` equal shares; none where begin == end.
struct KeyShare {
  int4 see;  // Row
  int kv_head, split, active, begin, end;
  __device__ __forceinline__ explicit KeyShare(const StepAttend& op) {
    constexpr int kLeast = 8;  // tiles a block takes before others share the work: to merge costs as much
    see = __ldcg(reinterpret_cast<const int4*>(op.row));
    kv_head = blockIdx.x / op.splits, split = blockIdx.x % op.splits;
    const int first = see.z / kTileKeys, tiles = max(see.w / kTileKeys - first + 1, 1);
    const int each = max((tiles + op.splits - 1) / op.splits, kLeast);
    active = (tiles + each - 1) / each;
    begin = first + split * each;
    end = kv_head < op.kv.heads ? min(begin + each, first + tiles) : begin;
    if (end < begin) end = begin;
  }
  __device__ __forceinline__ bool mine() const { return begin < end; }
  __device__ __forceinline__ bool owns_newest() const { return mine() && split == active - 1; }
};

// All blocks: arrive() says that this block's writes are done, wait() returns when all blocks' are, and visible.
struct GridBarrier {
  unsigned* word;
  unsigned target = 0;
  __device__ __forceinline__ void arrive() {
    compute_barrier();  // the release below covers what the barrier made this thread see
    if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(word) : "memory");
    target += gridDim.x;
  }
  __device__ __forceinline__ void wait() const {
    if (target > 0 && threadIdx.x == 0) {
      unsigned seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(word) : "memory");
      } while (seen < target);
    }
    compute_barrier();
  }
};

// Sums over the ranks. Between two of them every block of every rank passes a GridBarrier, so when a part of sum n
// arrives, all have read sum n - 2, whose half of the inbox it takes.
struct Sums {
  const StepPeers& peers;
  uint32_t before;  // sums of earlier steps
  __device__ __forceinline__ uint64_t* half(int to, int from, uint32_t number) const {
    return peers.inbox[to] + ((number & 1) * peers.world + from) * kStepDim;
  }
  __device__ __forceinline__ void send(int sum, int i, float value) const {
    const uint32_t number = before + sum;
    const uint64_t word = static_cast<uint64_t>(number) << 32 | __float_as_uint(value);
    for (int step = 1; step <= peers.world; ++step) {  // not all to the same one at once; itself last
      const int to = (peers.rank + step) % peers.world;
      asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(half(to, peers.rank, number) + i), "l"(word) : "memory");
    }
  }
  static __device__ __forceinline__ void look(const uint64_t* at, uint64_t (&words)[4]) {
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(words[0]), "=l"(words[1]) : "l"(at) : "memory");
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(words[2]), "=l"(words[3])
                 : "l"(at + 2)
                 : "memory");
  }
  // The whole warp: until value i, which stands for the rest, is there from every rank. One lane looks: if all threads
  // of all blocks did, they would take the bandwidth that the values need to come.
  __device__ __forceinline__ void wait(int sum, int i) const {
    const uint32_t number = before + sum;
    for (int from = 0; from < peers.world && threadIdx.x % 32 == 0; ++from) {
      uint64_t words[4];
      look(half(peers.rank, from, number) + i, words);
      for (int looks = 1; static_cast<uint32_t>(words[0] >> 32) != number; ++looks) {
        if (looks % 4096 == 0 && *peers.left) break;
        look(half(peers.rank, from, number) + i, words);
      }
    }
    __syncwarp();
  }
  // x += values i .. i + 3 of each rank, in the order of the ranks; gives up where the group has ended.
  __device__ __forceinline__ void add4(int sum, int i, float* x) const {
    const uint32_t number = before + sum;
    for (int from = 0; from < peers.world; ++from) {
      const uint64_t* at = half(peers.rank, from, number) + i;
      uint64_t words[4];
      look(at, words);
      const auto there = [&](uint64_t word) { return static_cast<uint32_t>(word >> 32) == number; };
      for (int looks = 1; !(there(words[0]) && there(words[1]) && there(words[2]) && there(words[3])); ++looks) {
        if (looks % 4096 == 0 && *peers.left) break;
        look(at, words);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e] += __uint_as_float(static_cast<uint32_t>(words[e]));
    }
  }
};
#endif

}  // namespace gemma4::cuda
