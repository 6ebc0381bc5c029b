// How values pass from CTA to CTA of the decode megakernel, and from GPU to GPU: as flagged values, with the flag
// inside the data as in NCCL's LL protocol.
//
// The two lowest bits of a float32 hold the epoch of its channel modulo 4: which use of the channel wrote it. A reader
// polls until it finds the epoch it expects, so it waits for the value itself; the writer needs no fence before, the
// reader no second trip to memory after. Each use of a channel writes all of its values, so an old value carries the
// epoch before. Between two uses of a channel all CTAs have waited for each other, at a GridBarrier or in a norm, which
// needs values of every CTA (recorder.cc ensures it). No other ordering is needed.
#pragma once

#include "backend/cuda/megakernel/pipeline.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// The epochs that flagged values and split-K partials of this step carry.
struct Epochs {
  const uint32_t* before;  // [kChannels + 1] uses of each channel in earlier steps, then instructions in them
  __device__ __forceinline__ uint32_t of(const FlaggedChannel& channel) const {
    return before[channel.index] + channel.epoch;
  }
  __device__ __forceinline__ uint32_t of_all_reduce(int epoch) const { return before[0] + epoch; }
  __device__ __forceinline__ uint32_t of_instruction(int index) const {
    return of_instruction(before[kChannels], index);
  }
  __device__ __forceinline__ static uint32_t of_instruction(uint32_t before, int index) { return before + index + 1; }
};

__device__ __forceinline__ uint32_t add_flag(float value, uint32_t epoch) {
  return (__float_as_uint(value) & ~3u) | (epoch & 3);
}
__device__ __forceinline__ float remove_flag(uint32_t flagged) { return __uint_as_float(flagged & ~3u); }
__device__ __forceinline__ bool ready(const uint4& flagged, uint32_t epoch) {
  return (((flagged.x ^ epoch) | (flagged.y ^ epoch) | (flagged.z ^ epoch) | (flagged.w ^ epoch)) & 3) == 0;
}

// Scope sys, because another GPU may have written the values.
__device__ __forceinline__ uint4 poll(const uint32_t* at) {
  uint4 flagged;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(flagged.x), "=r"(flagged.y), "=r"(flagged.z), "=r"(flagged.w)
               : "l"(at)
               : "memory");
  return flagged;
}
__device__ __forceinline__ void store_flagged(uint32_t* at, float value, uint32_t epoch) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(add_flag(value, epoch)) : "memory");
}
__device__ __forceinline__ void store_flagged(uint32_t* at, float a, float b, uint32_t epoch) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(at), "r"(add_flag(a, epoch)),
               "r"(add_flag(b, epoch))
               : "memory");
}
__device__ __forceinline__ void store_flagged(uint32_t* at, const float4& values, uint32_t epoch) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(add_flag(values.x, epoch)),
               "r"(add_flag(values.y, epoch)), "r"(add_flag(values.z, epoch)), "r"(add_flag(values.w, epoch))
               : "memory");
}

// The offset of column `column` in a channel that holds the input of a GEMV or a norm. Of 16 columns a thread takes
// four and the four that are eight further on (Vector8 in int8_input.cuh). In this order the vectors that the threads
// of a warp load at once fill whole lines of 128 bytes. In the order of the columns each line would be requested twice,
// half of it at a time, and a value would be seen 0.5 us later.
__device__ __forceinline__ int flagged_offset(int column) {
  return (column & ~63) | (column & 8) << 2 | (column & 48) >> 1 | (column & 7);
}
constexpr int kSecondVector = 32;  // from a thread's first vector of four to its second

// Loads all vectors of four flagged values at once, then polls those that are not ready, until all are or
// `give_up(polls)` says so. `address(i)`: of the thread's vector i. A thread that needs fewer vectors names some twice:
// a load inside a branch would be waited for before the next one is issued.
template <int kVectors, typename Address, typename GiveUp>
__device__ __forceinline__ void spin_wait(Address address, uint32_t epoch, uint4 (&flagged)[kVectors], GiveUp give_up) {
#pragma unroll
  for (int i = 0; i < kVectors; ++i) flagged[i] = poll(address(i));
  for (int polls = 1;; ++polls) {
    bool missing = false;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!ready(flagged[i], epoch)) missing = true, flagged[i] = poll(address(i));
    }
    if (!missing || give_up(polls)) return;
  }
}
template <int kVectors, typename Address>
__device__ __forceinline__ void spin_wait(Address address, uint32_t epoch, uint4 (&flagged)[kVectors]) {
  spin_wait(address, epoch, flagged, [](int) { return false; });
}

__device__ __forceinline__ void add_values(const uint4& flagged, float* to) {
  to[0] += remove_flag(flagged.x), to[1] += remove_flag(flagged.y);
  to[2] += remove_flag(flagged.z), to[3] += remove_flag(flagged.w);
}
#endif

}  // namespace gemma4::cuda
