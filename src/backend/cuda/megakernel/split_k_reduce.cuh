// How blocks add up a panel that several of them hold: each gives its part to the block that has the panel's end, where
// a warp of its own waits for the parts and adds them up while the others still compute. To have these ask early,
// between two stages, was slower than to ask at the end (docs/cuda/design.md).
#pragma once

#include "backend/cuda/megakernel/flagged_memory.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Whether units begin .. end-1 hold the end of a panel, but not its beginning.
__device__ __forceinline__ bool takes_parts(const StepLinear& op, const Units& units) {
  return units.col > 0 && units.end - units.begin >= op.chunks - units.col;
}

// The parts of a product, [blocks, 128 rows]: each value with the number of the operation above it.
struct Parts {
  uint64_t* at;
  uint32_t op;
  __device__ __forceinline__ Parts(const StepWorkspace& w, const StepLinear& product, uint32_t op_)
      : at(w.parts + (product.second ? step_parts(gridDim.x) / 2 : 0)), op(op_) {}
  __device__ __forceinline__ uint64_t* of(int block, int row) const {
    return at + static_cast<int64_t>(block) * kRowTileRows + row;
  }
  __device__ __forceinline__ void give(int row, float value) const {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(of(blockIdx.x, row)),
                 "l"(static_cast<uint64_t>(op) << 32 | __float_as_uint(value))
                 : "memory");
  }
  __device__ __forceinline__ void look(int block, int row, uint64_t (&two)[2]) const {  // of rows row and row + 1
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(two[0]), "=l"(two[1])
                 : "l"(of(block, row))
                 : "memory");
  }
  __device__ __forceinline__ bool there(const uint64_t (&two)[2]) const {
    return static_cast<uint32_t>(two[0] >> 32) == op && static_cast<uint32_t>(two[1] >> 32) == op;
  }
};

// Between the computing warps and the one that adds, in shared memory. In each product that takes parts both barriers
// turn once: `wanted` when the last stages begin (to ask earlier is in vain, and takes bandwidth), `added` when the
// sums are in `rows`.
struct Adding {
  uint64_t *wanted, *added;
  float* rows;  // [128]
  int phase = 0;
  __device__ __forceinline__ void want() const { barrier_arrive(wanted); }  // by each computing thread
  __device__ __forceinline__ const float* take() {
    barrier_wait(added, phase);
    phase ^= 1;
    return rows;
  }
};

// The parts of blocks first .. last - 1, in their order: lane l adds up rows 4 l .. 4 l + 3.
__device__ __forceinline__ float4 add_parts(const Parts& parts, int first, int last, int lane) {
  constexpr int kAtOnce = 4;
  float sum[4] = {};
  for (; first < last; first += kAtOnce) {
    uint64_t words[2 * kAtOnce][2];
    const auto look = [&](int i) { parts.look(min(first + i / 2, last - 1), 4 * lane + i % 2 * 2, words[i]); };
#pragma unroll
    for (int i = 0; i < 2 * kAtOnce; ++i) look(i);
    for (bool missing = true; missing;) {
      missing = false;
#pragma unroll
      for (int i = 0; i < 2 * kAtOnce; ++i) {
        if (!parts.there(words[i])) missing = true, look(i);
      }
    }
#pragma unroll
    for (int i = 0; i < 4 * kAtOnce; ++i) {
      const float value = __uint_as_float(static_cast<uint32_t>(words[i / 2][i % 2]));
      if (first + i / 4 < last) sum[i % 4] += value;
    }
  }
  return make_float4(sum[0], sum[1], sum[2], sum[3]);
}

// The adding warp.
__device__ __forceinline__ void add_all(const StepProgram& program, const StepWorkspace& w, Adding adding, int lane) {
  grid_wait();
  const uint32_t before = *static_cast<volatile uint32_t*>(w.numbers + kStepRegions);
  for (int i = 0; i < program.count; ++i) {
    const StepOp& op = program.ops[i];
    if (op.kind != StepKind::kLinear) continue;
    const Units units(op.linear);
    if (!takes_parts(op.linear, units)) continue;
    int first = static_cast<int>(blockIdx.x);
    while (first > 0 && op.linear.first_unit(first) > units.begin - units.col) --first;
    barrier_wait(adding.wanted, adding.phase);
    adding.phase ^= 1;
    const Parts parts(w, op.linear, Numbers::of_op(before, i));
    const float4 sum = add_parts(parts, first, static_cast<int>(blockIdx.x), lane);
    reinterpret_cast<float4*>(adding.rows)[lane] = sum;
    barrier_arrive(adding.added);
  }
}
#endif

}  // namespace gemma4::cuda
