// Copies into shared memory by TMA: barriers that count bytes, bulk copies, tensor maps; and the few accesses to global
// memory with a memory order. Compute capability 9.0. Code that is compiled for older devices too may name a bulk copy
// in a branch that they do not take: it does nothing there. Source: PTX ISA 8.x, section on cp.async.bulk.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/device/barrier.cuh"

// Arrives, and adds `bytes` to what copies must write before the phase completes.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
#if GEMMA4_BULK_COPIES
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

// Orders this thread's writes to shared memory before later bulk copies into it.
__device__ __forceinline__ void fence_before_bulk_copies() {
#if GEMMA4_BULK_COPIES
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Orders writes to global memory that this thread knows of before later bulk copies from there.
__device__ __forceinline__ void fence_before_bulk_reads() {
#if GEMMA4_BULK_COPIES
  asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

// An L2 policy for bytes that are read once: they are evicted first, so that activations stay.
__device__ __forceinline__ uint64_t policy_evict_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Copies `bytes` (a multiple of 16; both ends 16-byte aligned). They count at `barrier` when they are written.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
#if GEMMA4_BULK_COPIES
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
#endif
}

__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier,
                                          uint64_t policy) {
#if GEMMA4_BULK_COPIES
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
#endif
}

#if GEMMA4_BULK_COPIES
// Copies one box of a two-dimensional tensor map, its first element at (column, row). Elements outside the tensor are
// 0.
__device__ __forceinline__ void tensor_load(void* shared, const void* map, int column, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}

__device__ __forceinline__ void tensor_map_prefetch(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Prefetches bytes (a multiple of 16, 16-byte aligned) into L2.
__device__ __forceinline__ void prefetch_l2(const void* global, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

#endif

// Each of the four floats is read and written whole, by any block.
__device__ __forceinline__ float4 load_relaxed(const float4* address) {
  float4 v;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(address)
               : "memory");
  return v;
}

__device__ __forceinline__ void store_relaxed(float4* address, float4 v) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address), "f"(v.x), "f"(v.y), "f"(v.z),
               "f"(v.w)
               : "memory");
}
