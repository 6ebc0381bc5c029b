// Barriers in shared memory (mbarrier): waiting, arriving, and arriving when a thread's cp.async copies have landed.
// Compute capability 8.0 and later. Source: PTX ISA 8.x, sections on mbarrier and cp.async.mbarrier.arrive.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/device/shared.cuh"

// Whether this compilation is for a device with bulk copies and mbarrier's forms of 9.0.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define GEMMA4_BULK_COPIES 1
#else
#define GEMMA4_BULK_COPIES 0
#endif

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// After barrier_init, before another thread or TMA uses the barriers; __syncthreads() follows.
__device__ __forceinline__ void barrier_init_done() {
#if GEMMA4_BULK_COPIES
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// The barrier is given by pointer or by address in shared memory.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
#if GEMMA4_BULK_COPIES
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#else
  [[maybe_unused]] uint64_t state;  // 8.x has no form without it
  asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(state) : "r"(barrier) : "memory");
#endif
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) { barrier_arrive(shared_address(barrier)); }

// Arrives when all cp.async copies that this thread has issued are in shared memory.
__device__ __forceinline__ void barrier_arrive_after_copies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// 1 where barrier_wait() would return at once, else 0. Lanes may get different answers: combine them with warp_all().
__device__ __forceinline__ uint32_t barrier_peek(uint32_t barrier, uint32_t parity) {
  uint32_t passed;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(passed)
      : "r"(barrier), "r"(parity)
      : "memory");
  return passed;
}
__device__ __forceinline__ bool warp_all(uint32_t value) { return __all_sync(0xffffffffu, value != 0); }

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
#if GEMMA4_BULK_COPIES  // try_wait suspends the thread for a while
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
#else
  while (!barrier_peek(barrier, parity)) {
  }
#endif
}
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  barrier_wait(shared_address(barrier), parity);
}
