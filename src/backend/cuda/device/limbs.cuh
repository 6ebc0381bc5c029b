// One row of x as fixed-point numbers against 4-bit codes, on the integer tensor cores (see linear_fixed.cu for why).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/device/unpack.cuh"

// d += a b: a 16 x 32 unsigned bytes, b 32 x 8 signed bytes. Volatile: the whole warp must come here.
__device__ __forceinline__ void mma_bytes(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The bytes 0 of a, b, c, d as one word; or their bytes 1.
__device__ __forceinline__ uint32_t low_bytes(int a, int b, int c, int d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}
__device__ __forceinline__ uint32_t next_bytes(int a, int b, int c, int d) {
  return __byte_perm(__byte_perm(a, b, 0x0051), __byte_perm(c, d, 0x0051), 0x5410);
}

// Scales of rows g and g + 8 for group `half` of a chunk; and their zero points, the second times 16 as its products
// are.
template <int kGroups>
__device__ __forceinline__ float2 scale_in(const Int4Codec<kGroups>&, const uint8_t* chunk, int g, int half) {
  return bf16x2_to_float2(word(chunk + 512 + (kGroups == 2 ? g * 8 + half * 4 : g * 4)));
}
__device__ __forceinline__ float2 scale_in(const Q40Codec&, const uint8_t* chunk, int g, int half) {
  return f16x2_to_float2(word(chunk + 512 + g * 8 + half * 4));
}
template <int kGroups>
__device__ __forceinline__ int2 zeros_in(const Int4Codec<kGroups>&, const uint8_t* chunk, int g, int half) {
  const int z = kGroups == 2 ? chunk[576 + g * 2 + half] : chunk[544 + g];
  return make_int2(z & 0x0f, z & 0xf0);
}
__device__ __forceinline__ int2 zeros_in(const Q40Codec&, const uint8_t*, int, int) { return make_int2(8, 128); }

// What the products of one group of 32 need besides, for rows g and g + 8. `fact`: minus the sum of x over the group,
// and what one of its integers stands for.
struct GroupFacts {
  float2 scale;
  int2 zero, fact;
  template <typename Codec>
  __device__ __forceinline__ void load(const Codec& codec, const uint8_t* chunk, const uint8_t* at, int g, int half) {
    scale = scale_in(codec, chunk, g, half), zero = zeros_in(codec, chunk, g, half);
    fact = *reinterpret_cast<const int2*>(at);
  }
};

// By what the products d of the group for rows g and g + 8 (times 16) are scaled, and the whole numbers that are.
struct GroupTerms {
  float factor[2];
  int value[2];
  __device__ __forceinline__ GroupTerms(const GroupFacts& of, const int (&d)[4]) {
    const float unit = __int_as_float(of.fact.y);
    factor[0] = unit * of.scale.x, factor[1] = unit * of.scale.y;
    value[0] = d[0] * 256 + d[1] + of.zero.x * of.fact.x, value[1] = d[2] * 256 + d[3] + of.zero.y * of.fact.x;
  }
};

// sum[0] and sum[2] grow by them.
template <typename Codec>
__device__ __forceinline__ void add_group(const Codec& codec, const uint8_t* chunk, const uint8_t* fact, int g,
                                          int half, const int (&d)[4], float (&sum)[4]) {
  GroupFacts of;
  of.load(codec, chunk, fact, g, half);
  const GroupTerms terms(of, d);
#pragma unroll
  for (int i = 0; i < 2; ++i) sum[2 * i] = fmaf(terms.factor[i], static_cast<float>(terms.value[i]), sum[2 * i]);
}
