// The barrier over all CTAs of the decode megakernel, for instructions whose input passes through memory. The 31B needs
// none in a step.
#pragma once

#include "backend/cuda/megakernel/pipeline.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// Called by the consumer warps. arrive() announces that this CTA's writes are done; wait() returns when those of all
// CTAs are done and visible.
struct GridBarrier {
  unsigned* arrived;
  unsigned target = 0;
  __device__ __forceinline__ void arrive() {
    consumer_barrier();  // the release below covers the writes that this barrier made visible to this thread
    if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
    target += gridDim.x;
  }
  __device__ __forceinline__ void wait() const {
    if (target > 0 && threadIdx.x == 0) {
      unsigned seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrived) : "memory");
      } while (seen < target);
    }
    consumer_barrier();
  }
};
#endif

}  // namespace gemma4::cuda
