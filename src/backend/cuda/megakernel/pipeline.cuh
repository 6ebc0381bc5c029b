// What the parts of the decode megakernel share: the pipeline of stages in shared memory, the layout of shared memory,
// and the range of the work that falls to each CTA.
#pragma once

#include "backend/cuda/device/tma.cuh"
#include "backend/cuda/device/warp_load.cuh"
#include "backend/cuda/gemm/gemv_pipeline.cuh"
#include "backend/cuda/megakernel/recorder.h"

namespace gemma4::cuda {

constexpr int kConsumerThreads = kConsumerWarps * 32;
constexpr int kStageUnits = 4;  // work units of a row tile in a stage
constexpr int kTileKeys = 16;   // keys in a stage
constexpr int kRowPad = 8;      // elements between rows of a tile of keys, so that rows start in different banks

// A stage holds four work units (18,944 bytes of int4 in groups of 32) or 16 rows of 640 + 8 elements of a
// compressed cache.
constexpr int kStageBytes = kTileKeys * (640 + kRowPad) * 2;
static_assert(kStageBytes % 128 == 0 && kStageBytes >= kStageUnits * kRowTileTiles * Int4Codec<2>::kBytes);

// A tile of 64 columns of x: limbs [half][high, low][lane c][8 bytes], then group scales [half] of {minus the sum,
// unit}.
constexpr int kLimbBytes = 128, kGroupScaleBytes = 16;

// The input of a GEMV in shared memory: the limbs of all tiles, then their group scales.
struct GemvInput {
  uint8_t *limbs, *scales;
  __device__ __forceinline__ uint8_t* limbs_of(int tile, int half) const {
    return limbs + tile * kLimbBytes + half * (kLimbBytes / 2);
  }
  __device__ __forceinline__ uint8_t* scale_of(int tile, int half) const {
    return scales + tile * kGroupScaleBytes + half * (kGroupScaleBytes / 2);
  }
};

constexpr int kScratchLeast = 16896;  // what attention and the norms need

// Most stages in flight. Two keep memory busy (3 TB/s for 1.2 us are 27 KB an SM). All nine would too, but then every
// other load of a CTA, above all of another CTA's values, queues behind 20 MB: a step of the 31B takes 7.18 ms with 2,
// 7.30 with 3, 7.36 with 4, 7.43 with 6, 7.47 with 9.
//
// Without bulk copies three are better. On an H200 with 99 KB of shared memory a step takes 6.41 ms with 3 and 6.47
// with 2; with 163 KB 6.06 with 4, 6.07 with 3 and 6.16 with 2.
constexpr int kStagesInFlight = 2, kCopiedStagesInFlight = 3;

// How the kernel divides the shared memory of a device: the stages; then x as limbs and group scales of kInputTiles
// tiles, or attention's scratch (never both); then the residual stream, except where it is kept in device memory. And
// its threads: eight consumer warps, a reduction warp, and the producer warps (one where there are bulk copies; else
// one takes too long to issue the copies of a stage).
template <int kStages_, bool kResidualShared_, int kProducerWarps_, int kInputTiles_>
struct SharedPlan {
  static constexpr int kStages = kStages_, kProducers = kProducerWarps_ * 32, kInputTiles = kInputTiles_;
  static constexpr int kThreads = kConsumerThreads + 32 + kProducers;
  static constexpr int kStage = kStageBytes, kInFlight = kStagesInFlight;
  static constexpr bool kResidualShared = kResidualShared_;
  static constexpr int kLimbsBytes = kInputTiles * kLimbBytes;
  // Stages are multiplied whole, so the group scales behind the last tile are read too, but not used.
  static constexpr int kInputBytes = kLimbsBytes + (kInputTiles + kStageUnits - 1) * kGroupScaleBytes;
  static constexpr int kScratch = (kInputBytes > kScratchLeast ? kInputBytes + 127 : kScratchLeast) / 128 * 128;
  static constexpr int kBytes = kStages * kStageBytes + kScratch + (kResidualShared ? kResidualDimMax * 4 : 0);
};
constexpr int kMegakernelStatic = 5 << 10;  // bytes of static shared memory, rounded up
// The input of `down` of the 31B is 336 tiles, of which a CTA of 132 needs 116, and one of 64 needs 228.
using Plan227 = SharedPlan<9, true, 1, 116>;  // Hopper, datacentre Blackwell: 132 SMs and more
using Plan163 = SharedPlan<5, true, 2, 232>;  // A100: 108 SMs
using Plan99 = SharedPlan<3, false, 2, 232>;  // desktop cards: from 82 SMs (RTX 3090) to 170
static_assert(Plan227::kBytes + kMegakernelStatic <= 227 << 10 && Plan163::kBytes + kMegakernelStatic <= 163 << 10 &&
              Plan99::kBytes + kMegakernelStatic <= 99 << 10);

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // mbarriers
template <typename Plan, bool kFixed = (Plan::kStages > 0)>
struct PipelineState {
  int stage = 0, phase = 0;
  __device__ __forceinline__ explicit PipelineState(int /*stages*/ = Plan::kStages) {}
  __device__ __forceinline__ void next() {
    if (++stage == Plan::kStages) stage = 0, phase ^= 1;
  }
};

// A plan whose number of stages is known at run time has 0.
template <typename Plan>
struct PipelineState<Plan, false> {
  int stage = 0, phase = 0, stages;
  __device__ __forceinline__ explicit PipelineState(int stages_) : stages(stages_) {}
  __device__ __forceinline__ void next() {
    if (++stage == stages) stage = 0, phase ^= 1;
  }
};

// The producer warp's position in the pipeline, and the next stage that has to complete.
template <typename Plan>
struct ProducerState : PipelineState<Plan> {
  PipelineState<Plan> completed;
  int in_flight = 0;  // stages requested beyond it
  __device__ __forceinline__ explicit ProducerState(int stages = Plan::kStages)
      : PipelineState<Plan>(stages), completed(stages) {}
  __device__ __forceinline__ void next() { PipelineState<Plan>::next(), ++in_flight; }
};

template <typename Plan>
struct Pipeline {
  using State = PipelineState<Plan>;
  using Producer = ProducerState<Plan>;
  uint8_t* stages;
  uint64_t *full, *empty;
  uint32_t full_at, empty_at;  // addresses in shared memory
  bool bulk_copies;            // else each producer thread copies, and arrives at `full` by itself
  __device__ __forceinline__ Pipeline(uint8_t* stages_, uint64_t* full_, uint64_t* empty_, bool bulk_copies_)
      : stages(stages_),
        full(full_),
        empty(empty_),
        full_at(shared_address(full)),
        empty_at(shared_address(empty)),
        bulk_copies(bulk_copies_) {
    // Kept in registers: the compiler would recompute them at each use from a special register, which costs tens of
    // cycles in a loop of some hundreds.
    asm volatile("" : "+r"(full_at), "+r"(empty_at));
  }
  // Before each stage: waits until it is empty and fewer than the most stages are in flight.
  __device__ __forceinline__ void acquire(Producer& s) const {
    barrier_wait(empty_at + 8 * s.stage, s.phase ^ 1);
    const int most = bulk_copies ? Plan::kInFlight : kCopiedStagesInFlight;
    if (s.in_flight >= most) wait_full(s.completed), s.completed.next(), --s.in_flight;
  }
  __device__ __forceinline__ uint8_t* at(const State& s) const { return stages + s.stage * Plan::kStage; }
  __device__ __forceinline__ void wait_full(const State& s) const { barrier_wait(full_at + 8 * s.stage, s.phase); }
  // 1 if the stage is full, else 0. The result is for warp_all() and best read some time later.
  __device__ __forceinline__ uint32_t peek(const State& s) const {
    return barrier_peek(full_at + 8 * s.stage, s.phase);
  }
  __device__ __forceinline__ void release(const State& s) const {  // by each consumer thread
    barrier_arrive(empty_at + 8 * s.stage);
  }
};

// Among the consumer warps.
__device__ __forceinline__ void consumer_barrier() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
}

// This CTA's work units of a GEMV, begin .. end-1. The first is column tile `col` of row tile `row_tile`.
struct GemvRange {
  int begin, end, row_tile, col;
  __device__ __forceinline__ explicit GemvRange(const GemvInstruction& op)
      : GemvRange(op, op.first_unit(blockIdx.x), op.first_unit(blockIdx.x + 1)) {}
  __device__ __forceinline__ GemvRange(const GemvInstruction& op, int begin_, int end_)
      : begin(begin_), end(end_), row_tile(op.row_tile_of(begin)), col(begin - row_tile * op.col_tiles) {}
  // If the range ends inside a row tile that another CTA finishes, and other row tiles end before it: where this last
  // row tile begins. It is computed first, so that its partial is ready when that CTA needs it. Else `begin`.
  __device__ __forceinline__ int tail(const GemvInstruction& op) const {
    const int border = op.row_tile_of(end) * op.col_tiles;
    return border > begin && border < end ? border : begin;
  }
};

// Walks a range in slices of up to one stage, each of a single row tile.
struct StageSlices {
  int left, col_tiles, row_tile, col, length;
  __device__ __forceinline__ StageSlices(const GemvRange& range, int col_tiles_)
      : left(range.end - range.begin), col_tiles(col_tiles_), row_tile(range.row_tile), col(range.col) {
    measure();
  }
  __device__ __forceinline__ void measure() { length = min(min(left, col_tiles - col), kStageUnits); }
  __device__ __forceinline__ bool more() const { return left > 0; }
  __device__ __forceinline__ void next() {
    left -= length, col += length;
    if (col == col_tiles) col = 0, ++row_tile;
    measure();
  }
};

// The tiles of keys that fall to this CTA: begin .. end-1, one of `active` equal ranges; none where begin == end.
struct KeyRange {
  int4 see;  // Row
  int kv_head, split, active, begin, end;
  KeyRange() = default;
  __device__ __forceinline__ KeyRange(const AttentionInstruction& op, const int4& see_) : see(see_) {
    // Fewest tiles for a CTA: below this, merging costs as much as it saves. It costs more with the full layers' heads
    // of 512.
    const int least = op.kv.rotated ? 8 : 4;
    kv_head = blockIdx.x / op.splits, split = blockIdx.x % op.splits;
    const int first = see.z / kTileKeys, tiles = max(see.w / kTileKeys - first + 1, 1);
    const int each = max((tiles + op.splits - 1) / op.splits, least);
    active = (tiles + each - 1) / each;
    begin = first + split * each;
    end = kv_head < op.kv.heads ? min(begin + each, first + tiles) : begin;
    if (end < begin) end = begin;
  }
  __device__ __forceinline__ bool any() const { return begin < end; }
  __device__ __forceinline__ bool owns_new_key() const { return any() && split == active - 1; }
};

// The key range of a step, computed once: it is the same in all layers of one attention kind.
struct CachedKeyRange {
  const int32_t* row;  // null: none yet
  int heads, splits;
  KeyRange range;
  __device__ __forceinline__ bool fits(const AttentionInstruction& op) const {
    return row == op.row && heads == op.kv.heads && splits == op.splits;
  }
  __device__ __forceinline__ const KeyRange& of(const AttentionInstruction& op) {
    if (!fits(op)) {
      row = op.row, heads = op.kv.heads, splits = op.splits;
      range = KeyRange(op, __ldcg(reinterpret_cast<const int4*>(op.row)));
    }
    return range;
  }
};
#endif

}  // namespace gemma4::cuda
