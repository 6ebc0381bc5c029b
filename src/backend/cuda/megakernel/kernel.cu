#include "backend/cuda/megakernel/recorder.h"

#include "backend/cuda/megakernel/attention.cuh"
#include "backend/cuda/megakernel/gemv.cuh"
#include "backend/cuda/megakernel/instruction_slots.cuh"
#include "backend/cuda/megakernel/rms_norm.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // mbarriers
using Sliding = HeadShape<256, 0>;
using Full = HeadShape<512, 64>;

// The producer warp: requests everything that passes through the pipeline, in order, as soon as a stage is empty. Only
// the rows of a step are written by an earlier kernel, so it waits for that kernel only before it reads them.
template <typename Codec, typename Plan>
__device__ void run_producer(const InstructionList& list, const Pipeline<Plan>& pipeline, int thread) {
  if (pipeline.bulk_copies && thread >= 32) return;  // one warp is enough
  const uint64_t policy = policy_evict_first();
  ProducerState<Plan> state;
  CachedKeyRange sliding = {}, full = {};
  bool waited = false;
  for (int i = 0; i < list.count; ++i) {
    const Instruction& op = list.instructions[i];
    if (op.opcode == Opcode::kGemv) {
      produce_weights<Codec>(op.gemv, pipeline, state, thread, policy);
    } else if (op.opcode == Opcode::kAttention) {
      if (!waited) grid_wait(), waited = true;
      op.attention.kv.rotated ? produce_keys<Full>(op.attention, full, pipeline, state, thread, policy)
                              : produce_keys<Sliding>(op.attention, sliding, pipeline, state, thread, policy);
    }
  }
  grid_release();
}

// What the consumer warps keep in shared memory besides.
struct ConsumerState {
  AttentionInvariants<Sliding> sliding;
  AttentionInvariants<Full> full;
  uint32_t epochs_before[kChannels + 1];  // Epochs
  alignas(16) float sums[2 * kConsumerWarps];
  int last;
};

// The consumer warps.
template <typename Codec, typename Plan>
__device__ void run_consumers(const InstructionList& list, const MegakernelWorkspace& w, const Pipeline<Plan>& pipeline,
                              uint8_t* scratch, const ResidualStream& residual, Reduction reduction,
                              Instruction (&slots)[kInstructionSlots], ConsumerState& shared) {
  PipelineState<Plan> state;
  const GemvInput input = {scratch, scratch + Plan::kLimbsBytes};
  GridBarrier barrier{w.grid_barrier};
  InstructionClock clock(w);
  fetch_instruction(slots, list, 0), fetch_instruction(slots, list, 1);
  grid_wait();
  if (threadIdx.x <= kChannels) {
    shared.epochs_before[threadIdx.x] =
        *static_cast<volatile uint32_t*>(threadIdx.x == 0 ? w.ranks.epoch : w.epochs + threadIdx.x);
  }
  const Epochs epochs = {shared.epochs_before};
  const RankAllReduce ranks = {w.ranks, epochs};
  copy_wait<1>();
  consumer_barrier();
  for (int i = 0; i < list.count; ++i) {
    const Instruction& op = slots[i % kInstructionSlots];
    clock.begin(i);
    fetch_instruction(slots, list, i + 2);
    copy_wait<1>();  // the next instruction has arrived; all threads see it after the barrier at the end of this one
    if (op.opcode == Opcode::kRmsNorm) {
      run_rms_norm(op.rms_norm, ranks, barrier, residual, input, shared.sums, clock);
    } else if (op.opcode == Opcode::kAttention) {
      op.attention.kv.rotated
          ? run_attention<Full>(op.attention, barrier, epochs, shared.full, w.attention_partials, w.attention_counters,
                                pipeline, state, scratch, &shared.last, clock)
          : run_attention<Sliding>(op.attention, barrier, epochs, shared.sliding, w.attention_partials,
                                   w.attention_counters, pipeline, state, scratch, &shared.last, clock);
    } else {
      const GemvInstruction& gemv = op.gemv;
      const GemvRange range(gemv);
      if (!gemv.from_norm) {
        if (!gemv.from.values) barrier.wait();
        convert_input(gemv, range, epochs.of(gemv.from), input);
        consumer_barrier();
      }
      clock.input_ready();
      const Partials partials(w, gemv, epochs.of_instruction(i));
      run_gemv<Codec>(gemv, range, {ranks, reduction, partials, epochs.of(gemv.to)}, pipeline, state, input);
    }
    clock.end();
    op.arrive ? barrier.arrive() : consumer_barrier();
  }
  // No CTA still reads it: all have waited for each other in the norms after the first.
  if (list.x && blockIdx.x == 0) residual.write(list.x, list.dim);
}

// The last CTA to finish resets the counters and advances the epochs. All CTAs have read both by then.
__device__ __forceinline__ void finish_step(const InstructionList& list, const MegakernelWorkspace& w) {
  consumer_barrier();
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(w.grid_barrier + 1, 1) != gridDim.x - 1) return;
  w.grid_barrier[0] = w.grid_barrier[1] = 0;
  *w.ranks.epoch += list.epochs[0];
  for (int i = 1; i < kChannels; ++i) w.epochs[i] += list.epochs[i];
  w.epochs[kChannels] += list.count;
}
#endif

template <typename Plan>
__device__ __forceinline__ ResidualStream residual_stream(const MegakernelWorkspace& w, uint8_t* after_scratch) {
  if constexpr (Plan::kResidualShared) {
    return {reinterpret_cast<float4*>(after_scratch)};
  } else {  // each CTA has its own, and each thread reads only what it wrote
    return {w.residual + static_cast<int64_t>(blockIdx.x) * (kResidualDimMax / 4)};
  }
}

template <typename Codec, typename Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1)
    decode_megakernel(const __grid_constant__ InstructionList list, const __grid_constant__ MegakernelWorkspace w) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[Plan::kStages], empty[Plan::kStages], requested, reduced;
  __shared__ __align__(16) float reduced_rows[kRowTileRows];
  __shared__ __align__(16) uint8_t slot_bytes[kInstructionSlots * sizeof(Instruction)];
  __shared__ __align__(16) uint8_t consumer_bytes[sizeof(ConsumerState)];
  ConsumerState& consumer = *reinterpret_cast<ConsumerState*>(consumer_bytes);
  if (threadIdx.x == 0) {
    consumer.sliding.reset(), consumer.full.reset();
    for (int i = 0; i < Plan::kStages; ++i) {
      barrier_init(&full[i], w.decode.bulk_copies ? 1 : Plan::kProducers), barrier_init(&empty[i], kConsumerThreads);
    }
    barrier_init(&requested, kConsumerThreads), barrier_init(&reduced, 32);
    barrier_init_done();
  }
  __syncthreads();
  const Pipeline<Plan> pipeline(shared, full, empty, w.decode.bulk_copies);
  uint8_t* scratch = shared + Plan::kStages * kStageBytes;
  const Reduction reduction = {&requested, &reduced, reduced_rows};
  if (threadIdx.x >= kConsumerThreads + 32) {
    run_producer<Codec>(list, pipeline, threadIdx.x - kConsumerThreads - 32);
  } else if (threadIdx.x >= kConsumerThreads) {
    run_reduction_warp(list, w, reduction, threadIdx.x % 32);
  } else {
    auto& slots = *reinterpret_cast<Instruction(*)[kInstructionSlots]>(slot_bytes);
    run_consumers<Codec>(list, w, pipeline, scratch, residual_stream<Plan>(w, scratch + Plan::kScratch), reduction,
                         slots, consumer);
    finish_step(list, w);
  }
#endif
}

template <typename Codec, typename Plan>
void launch_planned(const InstructionList& list, const MegakernelWorkspace& workspace, cudaStream_t stream) {
  static AllowedOn allowed;
  allow_shared_once(decode_megakernel<Codec, Plan>, Plan::kBytes, allowed);
  launch(stream, dim3(static_cast<unsigned>(workspace.decode.blocks)), dim3(Plan::kThreads), Plan::kBytes,
         decode_megakernel<Codec, Plan>, list, workspace);
}

template <typename Plan>
bool plan_fits(const GemvWorkspace& workspace) {
  return workspace.shared_max >= Plan::kBytes + kMegakernelStatic;
}

template <typename Codec>
void launch_kernel(const InstructionList& list, const MegakernelWorkspace& workspace, cudaStream_t stream) {
  if (plan_fits<Plan227>(workspace.decode)) return launch_planned<Codec, Plan227>(list, workspace, stream);
  if (plan_fits<Plan163>(workspace.decode)) return launch_planned<Codec, Plan163>(list, workspace, stream);
  launch_planned<Codec, Plan99>(list, workspace, stream);
}

}  // namespace

bool megakernel_fits(const GemvWorkspace& workspace) { return plan_fits<Plan99>(workspace); }

int megakernel_input_tiles(const GemvWorkspace& workspace) {
  return plan_fits<Plan227>(workspace) ? Plan227::kInputTiles : Plan99::kInputTiles;
}

int64_t megakernel_residual_bytes(const GemvWorkspace& workspace) {
  return plan_fits<Plan163>(workspace) ? 0 : int64_t{4} * kResidualDimMax * workspace.blocks;
}

void launch_megakernel(const InstructionList& list, const MegakernelWorkspace& workspace, cudaStream_t stream) {
  if (list.rows > 4) return launch_megakernel_rows8(list, workspace, stream);
  if (list.rows > 1) return launch_megakernel_rows4(list, workspace, stream);
  if (list.layout == Layout::kInt4G32) return launch_kernel<Int4Codec<2>>(list, workspace, stream);
  if (list.layout == Layout::kInt4G64) return launch_kernel<Int4Codec<1>>(list, workspace, stream);
  CHECK(list.layout == Layout::kQ4_0);
  launch_kernel<Q40Codec>(list, workspace, stream);
}

}  // namespace gemma4::cuda
