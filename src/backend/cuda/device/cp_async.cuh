// Asynchronous copies of 16 bytes from global to shared memory (cp.async), in groups that are waited for in order.
#pragma once

#include <cstdint>

#include "backend/cuda/device/shared.cuh"

// Both ends 16-byte aligned; writes zeros where `valid` is false.
__device__ __forceinline__ void copy16_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0));
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::); }
// Waits until at most kPending committed groups are in flight.
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
