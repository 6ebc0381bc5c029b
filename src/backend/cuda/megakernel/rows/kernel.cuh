// The decode megakernel for steps of 2 to 8 rows. It walks a list of instructions as the kernel of one row does
// (kernel.cu), with the same pipeline of weights and keys. What differs is where values meet: with one row every CTA
// computes each norm and converts its input for itself; with several rows each value is converted once and read by all
// (exchange.cuh).
#pragma once

#include <algorithm>

#include "backend/cuda/megakernel/instruction_slots.cuh"
#include "backend/cuda/megakernel/rows/attention.cuh"
#include "backend/cuda/megakernel/rows/gemv.cuh"
#include "backend/cuda/megakernel/rows/norm.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {

// How the kernel divides shared memory: stages of weights and limbs, or of keys; scratch of attention and the norms;
// the residual stream of one row, unless it does not fit (it is in device memory then). And its threads: eight
// consumer warps, the reduction warp, the limb warp, two producer warps (SharedPlan). The number of stages depends on
// the device.
template <int kRows_>
struct RowsPlan {
  static constexpr int kRows = kRows_, kStages = 0, kStagesMax = 8, kProducers = 64;
  static constexpr int kInFlight = kStagesInFlight;
  static constexpr int kThreads = kConsumerThreads + 64 + kProducers;
  static constexpr int kLimbsAt = kStageUnits * kRowTileTiles * Int4Codec<2>::kBytes;
  static constexpr int kGemvStage = kLimbsAt + kStageUnits * kRows * kRowTileBytes;
  static constexpr int kStage = kGemvStage > kStageBytes ? kGemvStage : kStageBytes;
  static_assert(kLimbsAt % 128 == 0 && kStage % 128 == 0);
};
constexpr int kRowsStatic = 2 << 10;  // bytes of static shared memory, rounded up
constexpr int kRowsStagesLeast = 3;   // with the residual stream in device memory, if need be
constexpr int kRowsResidualBytes = kResidualDimMax * 4;

struct RowsShape {
  int stages, bytes;
  bool residual_shared;
};
template <int kRows>
RowsShape rows_shape(const GemvWorkspace& workspace) {
  using Plan = RowsPlan<kRows>;
  static_assert(kRowsStagesLeast * Plan::kStage + kRowsScratch + kRowsStatic <= 99 << 10);
  const int available = workspace.shared_max - kRowsStatic - kRowsScratch,
            with_residual = available - kRowsResidualBytes;
  const bool shared = with_residual >= (kRowsStagesLeast + 1) * Plan::kStage;
  const int stages = std::min((shared ? with_residual : available) / Plan::kStage, Plan::kStagesMax);
  return {stages, stages * Plan::kStage + kRowsScratch + (shared ? kRowsResidualBytes : 0), shared};
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
using Sliding = HeadShape<256, 0>;
using Full = HeadShape<512, 64>;

// In shared memory.
struct RowsShared {
  StepRows step[2];  // of sliding and of full layers
  alignas(16) float sums[2 * kConsumerWarps];
  int last;
};

template <typename Codec, typename Plan>
__device__ void produce_rows_step(const InstructionList& list, const StepRows (&step)[2], uint64_t* step_read,
                                  const Pipeline<Plan>& pipeline, int stages, int thread) {
  if (pipeline.bulk_copies && thread >= 32) return;
  const uint64_t policy = policy_evict_first();
  ProducerState<Plan> state(stages);
  bool waited = false;
  for (int i = 0; i < list.count; ++i) {
    const Instruction& op = list.instructions[i];
    if (op.opcode == Opcode::kGemv) {
      produce_weights<Codec>(op.gemv, pipeline, state, thread, policy);
    } else if (op.opcode == Opcode::kAttention) {
      if (!waited) grid_wait(), barrier_wait(step_read, 0), waited = true;
      op.attention.kv.rotated ? produce_rows_keys<Full>(op.attention, step[1], pipeline, state, thread, policy)
                              : produce_rows_keys<Sliding>(op.attention, step[0], pipeline, state, thread, policy);
    }
  }
  grid_release();
}

// The epoch of the instruction that makes the input of GEMV `i`.
__device__ __forceinline__ uint32_t input_epoch(const GemvInstruction& op, uint32_t before, int i) {
  return Epochs::of_instruction(before, op.from_memory ? i : i - 1);
}

template <typename Plan>
__device__ void produce_limbs_step(const InstructionList& list, const MegakernelWorkspace& w, const StepRows (&step)[2],
                                   uint64_t* step_read, const Pipeline<Plan>& pipeline, uint64_t* limbs_full,
                                   int stages, int lane) {
  grid_wait();
  barrier_wait(step_read, 0);
  const uint32_t before = *static_cast<volatile uint32_t*>(w.epochs + kChannels);
  PipelineState<Plan> state(stages);
  for (int i = 0; i < list.count; ++i) {
    const Instruction& op = list.instructions[i];
    if (op.opcode == Opcode::kGemv) {
      const LimbBuffer limbs(w.rows, op.gemv.limbs, list.rows);
      produce_limbs(op.gemv, limbs, input_epoch(op.gemv, before, i), pipeline, limbs_full, state, lane);
    } else if (op.opcode == Opcode::kAttention) {
      pass_rows_keys(op.attention, step[op.attention.kv.rotated != 0], pipeline, limbs_full, state, lane);
    }
  }
}

// All consumer threads; then the other warps may read the rows, too.
__device__ __forceinline__ void read_step_rows(const InstructionList& list, StepRows (&step)[2], uint64_t* step_read) {
  for (int kind = 0; kind < 2; ++kind) {
    const int4* rows = static_cast<const int4*>(list.step_rows[kind]);
    if (rows && threadIdx.x < list.rows) step[kind].see[threadIdx.x] = __ldcg(rows + threadIdx.x);
    if (threadIdx.x == 0) step[kind].count = list.rows;
  }
  barrier_arrive(step_read);
  consumer_barrier();
}

template <typename Codec, typename Plan>
__device__ void consume_rows_step(const InstructionList& list, const MegakernelWorkspace& w,
                                  const Pipeline<Plan>& pipeline, uint64_t* limbs_full, uint8_t* scratch,
                                  const ResidualStream& residual, Reduction reduction, uint64_t* step_read, int stages,
                                  Instruction (&slots)[kInstructionSlots], RowsShared& shared) {
  constexpr int kRows = Plan::kRows;
  PipelineState<Plan> state(stages);
  InstructionClock clock(w);
  const int mine = static_cast<int>(blockIdx.x);  // the row whose norms this CTA computes, if there is one
  fetch_instruction(slots, list, 0), fetch_instruction(slots, list, 1);
  grid_wait();
  const uint32_t before = *static_cast<volatile uint32_t*>(w.epochs + kChannels);
  copy_wait<1>();
  read_step_rows(list, shared.step, step_read);
  float2* rotations = w.rows.rotations + static_cast<int64_t>(blockIdx.x) * kRowsMax * kRotationsOfRow;
  RowRotations<Sliding> sliding;
  RowRotations<Full> full;
  float2* full_rotations = rotations + kRowsMax * Sliding::kHalf;
  for (int i = 0; i < list.count; ++i) {
    const Instruction& op = slots[i % kInstructionSlots];
    const uint32_t epoch = Epochs::of_instruction(before, i);
    clock.begin(i);
    fetch_instruction(slots, list, i + 2);
    copy_wait<1>();  // the next instruction has arrived; all threads see it after the barrier at the end of this one
    if (op.opcode == Opcode::kRmsNorm) {
      if (mine < list.rows) {
        run_rows_norm(op.rms_norm, mine, w.rows, LimbBuffer(w.rows, LimbSource::kNorm, list.rows), residual, scratch,
                      epoch, i + 1 == list.count, shared.sums, clock);
      }
    } else if (op.opcode == Opcode::kAttention) {
      if (op.attention.kv.rotated) {
        full.update(op.attention, list.rows, full_rotations);
        run_rows_attention<Full>(op.attention, shared.step[1], w, epoch, full_rotations, pipeline, limbs_full, state,
                                 scratch, &shared.last, clock);
      } else {
        sliding.update(op.attention, list.rows, rotations);
        run_rows_attention<Sliding>(op.attention, shared.step[0], w, epoch, rotations, pipeline, limbs_full, state,
                                    scratch, &shared.last, clock);
      }
    } else {
      const GemvInstruction& gemv = op.gemv;
      if (gemv.from_memory && mine < list.rows) {
        convert_row(gemv, mine, LimbBuffer(w.rows, gemv.limbs, list.rows), epoch);
      }
      RowsEpilogue<kRows> epilogue = {w.rows,
                                      reduction,
                                      RowPartials(w.rows, gemv, epoch),
                                      LimbBuffer(w.rows, LimbSource::kGeglu, list.rows),
                                      reinterpret_cast<float*>(scratch),
                                      list.rows,
                                      epoch};
      run_rows_gemv<Codec>(gemv, epilogue, pipeline, limbs_full, state, clock);
    }
    clock.end();
    consumer_barrier();
  }
  if (mine < list.rows) residual.write(list.x + mine * list.x_stride, list.dim);
}

// The last CTA to finish advances the epochs. All CTAs have read them by then.
__device__ __forceinline__ void finish_rows_step(const InstructionList& list, const MegakernelWorkspace& w) {
  consumer_barrier();
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(w.grid_barrier + 1, 1) != gridDim.x - 1) return;
  w.grid_barrier[1] = 0;
  w.epochs[kChannels] += list.count;
}
#endif

template <typename Codec, typename Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1)
    decode_rows_megakernel(const __grid_constant__ InstructionList list, const __grid_constant__ MegakernelWorkspace w,
                           const __grid_constant__ RowsShape shape) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[Plan::kStagesMax], empty[Plan::kStagesMax], limbs_full[Plan::kStagesMax], requested, reduced,
      step_read;
  __shared__ __align__(16) uint8_t slot_bytes[kInstructionSlots * sizeof(Instruction)];
  __shared__ RowsShared rows;
  if (threadIdx.x == 0) {
    for (int i = 0; i < shape.stages; ++i) {
      barrier_init(&full[i], w.decode.bulk_copies ? 1 : Plan::kProducers), barrier_init(&empty[i], kConsumerThreads);
      barrier_init(&limbs_full[i], w.decode.bulk_copies ? 1 : 32);
    }
    barrier_init(&requested, kConsumerThreads), barrier_init(&reduced, 32), barrier_init(&step_read, kConsumerThreads);
    barrier_init_done();
  }
  __syncthreads();
  const Pipeline<Plan> pipeline(shared, full, empty, w.decode.bulk_copies);
  uint8_t* scratch = shared + shape.stages * Plan::kStage;
  // The sums of the reduction warp lie behind the results of GeGLU.
  const Reduction reduction = {&requested, &reduced,
                               reinterpret_cast<float*>(scratch) + 2 * Plan::kRows * kWeightTileCols};
  const int thread = static_cast<int>(threadIdx.x) - kConsumerThreads;
  if (thread >= 64) {
    produce_rows_step<Codec>(list, rows.step, &step_read, pipeline, shape.stages, thread - 64);
  } else if (thread >= 32) {
    produce_limbs_step(list, w, rows.step, &step_read, pipeline, limbs_full, shape.stages, thread - 32);
  } else if (thread >= 0) {
    grid_wait();
    const uint32_t before = *static_cast<volatile uint32_t*>(w.epochs + kChannels);
    run_rows_reduction_warp<Plan::kRows>(list, w, reduction, before, thread);
  } else {
    const ResidualStream residual = {shape.residual_shared
                                         ? reinterpret_cast<float4*>(scratch + kRowsScratch)
                                         : w.residual + static_cast<int64_t>(blockIdx.x) * (kResidualDimMax / 4)};
    auto& slots = *reinterpret_cast<Instruction(*)[kInstructionSlots]>(slot_bytes);
    consume_rows_step<Codec>(list, w, pipeline, limbs_full, scratch, residual, reduction, &step_read, shape.stages,
                             slots, rows);
    finish_rows_step(list, w);
  }
#endif
}

template <int kRows, typename Codec>
void launch_rows_layout(const InstructionList& list, const MegakernelWorkspace& workspace, cudaStream_t stream) {
  using Plan = RowsPlan<kRows>;
  const RowsShape shape = rows_shape<kRows>(workspace.decode);
  CHECK(shape.stages >= kRowsStagesLeast && (shape.residual_shared || workspace.residual));
  static AllowedOn allowed;
  allow_shared_once(decode_rows_megakernel<Codec, Plan>, static_cast<size_t>(shape.bytes), allowed);
  launch(stream, dim3(static_cast<unsigned>(workspace.decode.blocks)), dim3(Plan::kThreads),
         static_cast<size_t>(shape.bytes), decode_rows_megakernel<Codec, Plan>, list, workspace, shape);
}

template <int kRows>
void launch_rows_kernel(const InstructionList& list, const MegakernelWorkspace& workspace, cudaStream_t stream) {
  if (list.layout == Layout::kInt4G32) return launch_rows_layout<kRows, Int4Codec<2>>(list, workspace, stream);
  if (list.layout == Layout::kInt4G64) return launch_rows_layout<kRows, Int4Codec<1>>(list, workspace, stream);
  CHECK(list.layout == Layout::kQ4_0);
  launch_rows_layout<kRows, Q40Codec>(list, workspace, stream);
}

}  // namespace gemma4::cuda
