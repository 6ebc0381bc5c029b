// When instructions of the decode megakernel begin, have their input and end, in a build with GEMMA4_KERNEL_CLOCKS
// (kernel_clocks.h says how to use it). In other builds InstructionClock is empty and compiles to nothing.
#pragma once

#include "backend/cuda/megakernel/recorder.h"

namespace gemma4::cuda {

#if GEMMA4_KERNEL_CLOCKS
// Used by all consumer threads; thread 0 of each CTA writes. Nanoseconds of the GPU's global timer.
struct InstructionClock {
  ClockEntry* entries;  // [kClockInstructionsMax, CTAs]
  ClockEntry now;
  int index;
  __device__ __forceinline__ explicit InstructionClock(const MegakernelWorkspace& w) : entries(w.clocks) {}
  __device__ __forceinline__ static uint64_t time() {
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)::"memory");
    return t;
  }
  __device__ __forceinline__ void begin(int instruction) { index = instruction, now.begin = now.ready = time(); }
  __device__ __forceinline__ void input_ready() { now.ready = time(); }
  __device__ __forceinline__ void end() {
    now.end = time();
    if (threadIdx.x == 0 && entries && index < kClockInstructionsMax) entries[index * gridDim.x + blockIdx.x] = now;
  }
};
#else
struct InstructionClock {
  __device__ __forceinline__ explicit InstructionClock(const MegakernelWorkspace&) {}
  __device__ __forceinline__ void begin(int) {}
  __device__ __forceinline__ void input_ready() {}
  __device__ __forceinline__ void end() {}
};
#endif

}  // namespace gemma4::cuda
