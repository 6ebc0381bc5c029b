// Split-K: how the CTAs that share a row tile add up its sums. Each gives its partial to the CTA that has the end of
// the row tile. There a warp of its own, the reduction warp, waits for the partials and adds them up while the consumer
// warps still compute. Polling earlier, between two stages, was slower than polling at the end (docs/cuda/design.md).
#pragma once

#include "backend/cuda/megakernel/flagged_memory.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// Whether the range holds the end of a row tile, but not its beginning.
__device__ __forceinline__ bool reduces_partials(const GemvInstruction& op, const GemvRange& range) {
  return range.col > 0 && range.end - range.begin >= op.col_tiles - range.col;
}

// The partials of a GEMV, [CTAs, 128 rows]: each value has the epoch of the instruction in its upper half.
struct Partials {
  uint64_t* values;
  uint32_t epoch;
  __device__ __forceinline__ Partials(const MegakernelWorkspace& w, const GemvInstruction& gemv, uint32_t epoch_)
      : values(w.partials + (gemv.second_partials ? split_k_partials(gridDim.x) / 2 : 0)), epoch(epoch_) {}
  __device__ __forceinline__ uint64_t* of(int block, int row) const {
    return values + static_cast<int64_t>(block) * kRowTileRows + row;
  }
  __device__ __forceinline__ void store(int row, float value) const {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(of(blockIdx.x, row)),
                 "l"(static_cast<uint64_t>(epoch) << 32 | __float_as_uint(value))
                 : "memory");
  }
  __device__ __forceinline__ void poll(int block, int row, uint64_t (&two)[2]) const {  // of rows row and row + 1
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(two[0]), "=l"(two[1])
                 : "l"(of(block, row))
                 : "memory");
  }
  __device__ __forceinline__ bool ready(const uint64_t (&two)[2]) const {
    return static_cast<uint32_t>(two[0] >> 32) == epoch && static_cast<uint32_t>(two[1] >> 32) == epoch;
  }
};

// Shared between the consumer warps and the reduction warp, in shared memory. In each GEMV where this CTA reduces
// partials both barriers complete one phase: `requested` when the last stages begin (polling earlier is in vain and
// takes bandwidth), `reduced` when the sums are in `rows`.
struct Reduction {
  uint64_t *requested, *reduced;
  float* rows;  // [128]
  int phase = 0;
  __device__ __forceinline__ void request() const { barrier_arrive(requested); }  // by each consumer thread
  __device__ __forceinline__ const float* wait() {
    barrier_wait(reduced, phase);
    phase ^= 1;
    return rows;
  }
};

// The sum of the partials of CTAs first .. last - 1, in this order: lane l adds up rows 4 l .. 4 l + 3.
__device__ __forceinline__ float4 sum_partials(const Partials& partials, int first, int last, int lane) {
  constexpr int kAtOnce = 4;
  float sum[4] = {};
  for (; first < last; first += kAtOnce) {
    uint64_t values[2 * kAtOnce][2];
    const auto poll = [&](int i) { partials.poll(min(first + i / 2, last - 1), 4 * lane + i % 2 * 2, values[i]); };
#pragma unroll
    for (int i = 0; i < 2 * kAtOnce; ++i) poll(i);
    for (bool missing = true; missing;) {
      missing = false;
#pragma unroll
      for (int i = 0; i < 2 * kAtOnce; ++i) {
        if (!partials.ready(values[i])) missing = true, poll(i);
      }
    }
#pragma unroll
    for (int i = 0; i < 4 * kAtOnce; ++i) {
      const float value = __uint_as_float(static_cast<uint32_t>(values[i / 2][i % 2]));
      if (first + i / 4 < last) sum[i % 4] += value;
    }
  }
  return make_float4(sum[0], sum[1], sum[2], sum[3]);
}

// The reduction warp.
__device__ __forceinline__ void run_reduction_warp(const InstructionList& list, const MegakernelWorkspace& w,
                                                   Reduction reduction, int lane) {
  grid_wait();
  const uint32_t before = *static_cast<volatile uint32_t*>(w.epochs + kChannels);
  for (int i = 0; i < list.count; ++i) {
    const Instruction& op = list.instructions[i];
    if (op.opcode != Opcode::kGemv) continue;
    const GemvRange range(op.gemv);
    if (!reduces_partials(op.gemv, range)) continue;
    int first = static_cast<int>(blockIdx.x);
    while (first > 0 && op.gemv.first_unit(first) > range.begin - range.col) --first;
    barrier_wait(reduction.requested, reduction.phase);
    reduction.phase ^= 1;
    const Partials partials(w, op.gemv, Epochs::of_instruction(before, i));
    const float4 sum = sum_partials(partials, first, static_cast<int>(blockIdx.x), lane);
    reinterpret_cast<float4*>(reduction.rows)[lane] = sum;
    barrier_arrive(reduction.reduced);
  }
}
#endif

}  // namespace gemma4::cuda
