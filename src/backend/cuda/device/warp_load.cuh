// Copies into shared memory by cp.async, for devices without bulk copies: what TMA does for one thread, the lanes of a
// few producer warps do with 16 bytes each. Compute capability 8.0 and later.
#pragma once

#include <cstdint>

#include "backend/cuda/device/barrier.cuh"

__device__ __forceinline__ void copy16_async(uint32_t to, const void* from, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "l"(policy)
               : "memory");
}

// Starts this thread's part of the copy of `bytes`, a multiple of 16, by kThreads threads; both ends 16-byte aligned.
// `policy`: tma.cuh.
template <int kThreads>
__device__ __forceinline__ void load_by_threads(void* shared, const void* global, uint32_t bytes, int thread,
                                                uint64_t policy) {
  const uint32_t to = shared_address(shared);
  const char* from = static_cast<const char*>(global);
#pragma unroll 8
  for (uint32_t at = thread * 16; at < bytes; at += kThreads * 16) copy16_async(to + at, from + at, policy);
}
