// A warp's copies into shared memory by cp.async, for devices without bulk copies: what TMA does for one thread, 32
// lanes do with 16 bytes each. Compute capability 8.0 and later.
#pragma once

#include <cstdint>

#include "backend/cuda/device/barrier.cuh"

__device__ __forceinline__ void copy16_async(uint32_t to, const void* from, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "l"(policy)
               : "memory");
}

// Starts the copy of `bytes`, a multiple of 16; both ends 16-byte aligned. `policy`: tma.cuh.
__device__ __forceinline__ void warp_load(void* shared, const void* global, uint32_t bytes, int lane,
                                          uint64_t policy) {
  const uint32_t to = shared_address(shared);
  const char* from = static_cast<const char*>(global);
#pragma unroll 8
  for (uint32_t at = lane * 16; at < bytes; at += 512) copy16_async(to + at, from + at, policy);
}
