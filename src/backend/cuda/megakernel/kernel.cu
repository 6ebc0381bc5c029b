#include "backend/cuda/megakernel/recorder.h"

#include "backend/cuda/megakernel/attention.cuh"
#include "backend/cuda/megakernel/gemv.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // bulk copies and their barriers
using Sliding = StepHead<256, 0>;
using Full = StepHead<512, 64>;

// The copying warp: everything that comes through the ring, in order, as soon as there is room. Only the rows of a step
// are written by an earlier kernel.
template <typename Codec>
__device__ void copy_all(const StepProgram& program, const Ring& ring, int lane) {
  const uint64_t policy = policy_evict_first();
  CopyState state;
  SeenShare sliding = {}, full = {};
  bool waited = false;
  for (int i = 0; i < program.count; ++i) {
    const StepOp& op = program.ops[i];
    if (op.kind == StepKind::kLinear) {
      copy_linear<Codec>(op.linear, ring, state, lane, policy);
    } else if (op.kind == StepKind::kAttend) {
      if (!waited) grid_wait(), waited = true;
      op.attend.kv.rotated ? copy_tiles<Full>(op.attend, full, ring, state, lane)
                           : copy_tiles<Sliding>(op.attend, sliding, ring, state, lane);
    }
  }
  grid_release();
}

// Operations on their way into shared memory, two ahead of the one that is worked on.
constexpr int kOpSlots = 3;
__device__ __forceinline__ void bring_op(StepOp (&slots)[kOpSlots], const StepProgram& program, int i) {
  constexpr int kWords = sizeof(StepOp) / 16;
  static_assert(sizeof(StepOp) % 16 == 0 && kWords <= 32);
  if (i < program.count && threadIdx.x < kWords) {
    copy16_async(reinterpret_cast<uint4*>(&slots[i % kOpSlots]) + threadIdx.x,
                 reinterpret_cast<const uint4*>(program.ops + i) + threadIdx.x, true);
  }
  copy_commit();
}

// What the computing warps keep in shared memory besides.
struct Kept {
  AttendFacts<Sliding> sliding;
  AttendFacts<Full> full;
  uint32_t before[kStepRegions + 1];  // Numbers
  alignas(16) float sums[2 * kStreamWarps];
  int last;
};

// The computing warps.
template <typename Codec>
__device__ void compute_all(const StepProgram& program, const StepWorkspace& w, const Ring& ring, uint8_t* scratch,
                            const Residual& residual, Adding adding, StepOp (&slots)[kOpSlots], Kept& kept) {
  RingState state;
  GridBarrier barrier{w.barrier};
  bring_op(slots, program, 0), bring_op(slots, program, 1);
  grid_wait();
  if (threadIdx.x <= kStepRegions) {
    kept.before[threadIdx.x] =
        *static_cast<volatile uint32_t*>(threadIdx.x == 0 ? w.peers.epoch : w.numbers + threadIdx.x);
  }
  const Numbers numbers = {kept.before};
  const Sums ranks = {w.peers, numbers};
  copy_wait<1>();
  compute_barrier();
  for (int i = 0; i < program.count; ++i) {
    const StepOp& op = slots[i % kOpSlots];
    bring_op(slots, program, i + 2);
    copy_wait<1>();  // the next one is there, and seen by all after the barrier at the end of this one
    if (op.kind == StepKind::kNorm) {
      run_norm(op.norm, ranks, barrier, residual, scratch, kept.sums);
    } else if (op.kind == StepKind::kAttend) {
      op.attend.kv.rotated ? run_attend<Full>(op.attend, barrier, numbers, kept.full, w.partial, w.counters, ring,
                                              state, scratch, &kept.last)
                           : run_attend<Sliding>(op.attend, barrier, numbers, kept.sliding, w.partial, w.counters, ring,
                                                 state, scratch, &kept.last);
    } else {
      const StepLinear& product = op.linear;
      const Units units(product);
      if (!product.from_norm) {
        if (!product.from.at) barrier.wait();
        bring_input(product, units, numbers.of(product.from), scratch);
        compute_barrier();
      }
      const Parts parts(w, product, numbers.of_op(i));
      run_linear<Codec>(product, units, {ranks, adding, parts, numbers.of(product.to)}, ring, state, scratch);
    }
    op.arrive ? barrier.arrive() : compute_barrier();
  }
  // no block still reads it: they met in the norms after the first
  if (program.x && blockIdx.x == 0) residual.write(program.x, program.dim);
}

// The last block to leave makes the counters zero again and moves the numbers on; all have read both by then.
__device__ __forceinline__ void write_residual(const StepProgram& program, const StepWorkspace& w) {
  compute_barrier();
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(w.barrier + 1, 1) != gridDim.x - 1) return;
  w.barrier[0] = w.barrier[1] = 0;
  *w.peers.epoch += program.uses[0];
  for (int i = 1; i < kStepRegions; ++i) w.numbers[i] += program.uses[i];
  w.numbers[kStepRegions] += program.count;
}
#endif

template <typename Codec>
__global__ void __launch_bounds__(kStepThreads, 1)
    step_kernel(const __grid_constant__ StepProgram program, const __grid_constant__ StepWorkspace w) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[kStepStages], empty[kStepStages], wanted, added;
  __shared__ __align__(16) float added_rows[kPanelRows];
  __shared__ __align__(16) uint8_t slot_bytes[kOpSlots * sizeof(StepOp)];
  __shared__ __align__(16) uint8_t kept_bytes[sizeof(Kept)];
  Kept& kept = *reinterpret_cast<Kept*>(kept_bytes);
  if (threadIdx.x == 0) {
    kept.sliding.forget(), kept.full.forget();
    for (int i = 0; i < kStepStages; ++i) barrier_init(&full[i], 1), barrier_init(&empty[i], kComputeThreads);
    barrier_init(&wanted, kComputeThreads), barrier_init(&added, 32);
    barrier_init_done();
  }
  __syncthreads();
  const Ring ring(shared, full, empty);
  uint8_t* scratch = shared + kStepStages * kStageBytes;
  const Adding adding = {&wanted, &added, added_rows};
  if (threadIdx.x >= kComputeThreads + 32) {
    add_all(program, w, adding, threadIdx.x % 32);
  } else if (threadIdx.x >= kComputeThreads) {
    copy_all<Codec>(program, ring, threadIdx.x % 32);
  } else {
    auto& slots = *reinterpret_cast<StepOp(*)[kOpSlots]>(slot_bytes);
    compute_all<Codec>(program, w, ring, scratch, {reinterpret_cast<float4*>(scratch + kScratchBytes)}, adding, slots,
                       kept);
    write_residual(program, w);
  }
#endif
}

template <typename Codec>
void start(const StepProgram& program, const StepWorkspace& workspace, cudaStream_t stream) {
  static AllowedOn allowed;
  allow_shared_once(step_kernel<Codec>, kStepShared, allowed);
  launch(stream, dim3(static_cast<unsigned>(workspace.decode.blocks)), dim3(kStepThreads), kStepShared,
         step_kernel<Codec>, program, workspace);
}

}  // namespace

bool step_fits(const DecodeWorkspace& workspace) { return workspace.shared_most >= kStepShared + (5 << 10); }

void run_step(const StepProgram& program, const StepWorkspace& workspace, cudaStream_t stream) {
  if (program.layout == Layout::kInt4G32) return start<Int4Codec<2>>(program, workspace, stream);
  if (program.layout == Layout::kInt4G64) return start<Int4Codec<1>>(program, workspace, stream);
  CHECK(program.layout == Layout::kQ4_0);
  start<Q40Codec>(program, workspace, stream);
}

}  // namespace gemma4::cuda
