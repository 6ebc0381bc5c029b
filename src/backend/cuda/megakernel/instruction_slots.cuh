// The consumer warps read each instruction from shared memory, where it arrives while the two before it run.
#pragma once

#include "backend/cuda/device/cp_async.cuh"
#include "backend/cuda/megakernel/recorder.h"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// Fetches an instruction into shared memory, two ahead of the one that runs.
constexpr int kInstructionSlots = 3;
__device__ __forceinline__ void fetch_instruction(Instruction (&slots)[kInstructionSlots], const InstructionList& list,
                                                  int i) {
  constexpr int kVectors = sizeof(Instruction) / 16;
  static_assert(sizeof(Instruction) % 16 == 0 && kVectors <= 32);
  if (i < list.count && threadIdx.x < kVectors) {
    copy16_async(reinterpret_cast<uint4*>(&slots[i % kInstructionSlots]) + threadIdx.x,
                 reinterpret_cast<const uint4*>(list.instructions + i) + threadIdx.x, true);
  }
  copy_commit();
}
#endif

}  // namespace gemma4::cuda
