// What the parts of the step kernel share: the ring of shared memory, its layout, and each block's share of the work.
#pragma once

#include "backend/cuda/device/tma.cuh"
#include "backend/cuda/gemm/gemv_pipeline.cuh"
#include "backend/cuda/megakernel/recorder.h"

namespace gemma4::cuda {

constexpr int kStepThreads = (kConsumerWarps + 2) * 32;  // eight warps compute, one copies, one adds up parts
constexpr int kComputeThreads = kConsumerWarps * 32;
constexpr int kStageChunks = 4;  // column chunks of a panel in a stage
constexpr int kTileKeys = 16;    // keys in a stage
constexpr int kRowPad = 8;       // elements between rows of a tile of keys: rows start in different banks

// A stage holds four chunks (18,944 bytes of int4 in groups of 32) or 16 rows of 640 + 8 elements of a compressed
// cache.
constexpr int kStageBytes = kTileKeys * (640 + kRowPad) * 2;
static_assert(kStageBytes % 128 == 0 && kStageBytes >= kStageChunks * kRowTileTiles * Int4Codec<2>::kBytes);

// Of x, a chunk of 64: digits [half][high, low][lane c][8 bytes], then facts [half] of {minus the sum, unit}.
constexpr int kDigitBytes = 128, kFactBytes = 16;
// Stages are multiplied whole, so what would follow the last chunk is read too, and not used.
constexpr int kDigitsBytes = kStepChunks * kDigitBytes;
constexpr int kInputBytes = kDigitsBytes + (kStepChunks + kStageChunks - 1) * kFactBytes;

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
  uint32_t full_at, empty_at;  // in shared memory
  __device__ __forceinline__ Ring(uint8_t* stages_, uint64_t* full_, uint64_t* empty_)
      : stages(stages_), full(full_), empty(empty_), full_at(shared_address(full)), empty_at(shared_address(empty)) {
    // Kept, not made anew at each use: that takes a special register, tens of cycles in a loop of some hundreds.
    asm volatile("" : "+r"(full_at), "+r"(empty_at));
  }
  // Before each stage: room for it, and no more than kFlight under way.
  __device__ __forceinline__ void wait_turn(CopyState& s) const {
    barrier_wait(empty_at + 8 * s.stage, s.phase ^ 1);
    if (s.ahead >= kFlight) wait_full(s.landed), s.landed.next(), --s.ahead;
  }
  __device__ __forceinline__ uint8_t* at(const RingState& s) const { return stages + s.stage * kStageBytes; }
  __device__ __forceinline__ void wait_full(const RingState& s) const { barrier_wait(full_at + 8 * s.stage, s.phase); }
  // 1 where the stage is there, 0 where it is not yet: for warp_all(), best some time later.
  __device__ __forceinline__ uint32_t peek(const RingState& s) const {
    return barrier_peek(full_at + 8 * s.stage, s.phase);
  }
  __device__ __forceinline__ void release(const RingState& s) const {  // by each computing thread
    barrier_arrive(empty_at + 8 * s.stage);
  }
};

// Among the computing warps.
__device__ __forceinline__ void compute_barrier() { asm volatile("bar.sync 1, %0;" ::"n"(kComputeThreads) : "memory"); }

// Units begin .. end-1 of a product, this block's; the first is column chunk `col` of panel `panel`.
struct Units {
  int begin, end, panel, col;
  __device__ __forceinline__ explicit Units(const StepLinear& op)
      : Units(op, op.first_unit(blockIdx.x), op.first_unit(blockIdx.x + 1)) {}
  __device__ __forceinline__ Units(const StepLinear& op, int begin_, int end_)
      : begin(begin_), end(end_), panel(op.panel_of(begin)), col(begin - panel * op.chunks) {}
  // Where the part of a panel begins that another block ends, if panels end before it: it comes first, so that it is
  // there when that block asks for it. Else `begin`.
  __device__ __forceinline__ int tail(const StepLinear& op) const {
    const int border = op.panel_of(end) * op.chunks;
    return border > begin && border < end ? border : begin;
  }
};

// These in pieces of a stage.
struct Pieces {
  int left, chunks, panel, col, length;
  __device__ __forceinline__ Pieces(const Units& units, int chunks_)
      : left(units.end - units.begin), chunks(chunks_), panel(units.panel), col(units.col) {
    measure();
  }
  __device__ __forceinline__ void measure() { length = min(min(left, chunks - col), kStageChunks); }
  __device__ __forceinline__ bool more() const { return left > 0; }
  __device__ __forceinline__ void next() {
    left -= length, col += length;
    if (col == chunks) col = 0, ++panel;
    measure();
  }
};

// The tiles of keys that fall to this block: begin .. end-1 of `active` equal shares; none where begin == end.
struct KeyShare {
  int4 see;  // Row
  int kv_head, split, active, begin, end;
  KeyShare() = default;
  __device__ __forceinline__ KeyShare(const StepAttend& op, const int4& see_) : see(see_) {
    // Tiles a block takes before others share the work: to merge costs as much, more of full layers' heads of 512.
    const int least = op.kv.rotated ? 8 : 4;
    kv_head = blockIdx.x / op.splits, split = blockIdx.x % op.splits;
    const int first = see.z / kTileKeys, tiles = max(see.w / kTileKeys - first + 1, 1);
    const int each = max((tiles + op.splits - 1) / op.splits, least);
    active = (tiles + each - 1) / each;
    begin = first + split * each;
    end = kv_head < op.kv.heads ? min(begin + each, first + tiles) : begin;
    if (end < begin) end = begin;
  }
  __device__ __forceinline__ bool mine() const { return begin < end; }
  __device__ __forceinline__ bool owns_newest() const { return mine() && split == active - 1; }
};

// The share of a step, which all layers of a kind have alike: worked out once.
struct SeenShare {
  const int32_t* row;  // null: none yet
  int heads, splits;
  KeyShare share;
  __device__ __forceinline__ bool fits(const StepAttend& op) const {
    return row == op.row && heads == op.kv.heads && splits == op.splits;
  }
  __device__ __forceinline__ const KeyShare& of(const StepAttend& op) {
    if (!fits(op)) {
      row = op.row, heads = op.kv.heads, splits = op.splits;
      share = KeyShare(op, __ldcg(reinterpret_cast<const int4*>(op.row)));
    }
    return share;
  }
};
#endif

}  // namespace gemma4::cuda
