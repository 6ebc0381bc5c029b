// int8 arithmetic of the GEMV kernels: limbs of fixed-point x times 4-bit codes on the integer tensor cores, and the
// scales and zero points that follow. gemv_int8.cu says how it works; the decode megakernel shares these functions.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/gemm/layout_codec.cuh"

namespace gemma4::cuda {

// The low limbs (bytes 0) of a, b, c, d as one word; their high limbs (bytes 1).
__device__ __forceinline__ uint32_t low_limbs(int a, int b, int c, int d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}
__device__ __forceinline__ uint32_t high_limbs(int a, int b, int c, int d) {
  return __byte_perm(__byte_perm(a, b, 0x0051), __byte_perm(c, d, 0x0051), 0x5410);
}

// The scales of rows g and g + 8 for group `half` of a weight tile, and their zero points. The second zero point is
// times 16, as its products are.
template <int kGroups>
__device__ __forceinline__ float2 group_scale(const Int4Codec<kGroups>&, const uint8_t* tile, int g, int half) {
  return unpack_bf16x2(word(tile + 512 + (kGroups == 2 ? g * 8 + half * 4 : g * 4)));
}
__device__ __forceinline__ float2 group_scale(const Q40Codec&, const uint8_t* tile, int g, int half) {
  return unpack_f16x2(word(tile + 512 + g * 8 + half * 4));
}
template <int kGroups>
__device__ __forceinline__ int2 group_zeros(const Int4Codec<kGroups>&, const uint8_t* tile, int g, int half) {
  const int z = kGroups == 2 ? tile[576 + g * 2 + half] : tile[544 + g];
  return make_int2(z & 0x0f, z & 0xf0);
}
__device__ __forceinline__ int2 group_zeros(const Q40Codec&, const uint8_t*, int, int) { return make_int2(8, 128); }

// The scales of one group of 32 columns for rows g and g + 8. x_scale: minus the sum of the fixed-point x over the
// group (the zero-point correction), and the bits of the float that the integer 1 stands for.
struct GroupScales {
  float2 scale;
  int2 zero, x_scale;
  template <typename Codec>
  __device__ __forceinline__ void load(const Codec& codec, const uint8_t* tile, const uint8_t* at, int g, int half) {
    scale = group_scale(codec, tile, g, half), zero = group_zeros(codec, tile, g, half);
    x_scale = *reinterpret_cast<const int2*>(at);
  }
};

// What a group adds to rows g and g + 8 (times 16): factor * value, where d are the products of its limbs and codes.
struct GroupTerms {
  float factor[2];
  int value[2];
  __device__ __forceinline__ GroupTerms(const GroupScales& of, const int (&d)[4]) {
    const float scale = __int_as_float(of.x_scale.y);
    factor[0] = scale * of.scale.x, factor[1] = scale * of.scale.y;
    value[0] = d[0] * 256 + d[1] + of.zero.x * of.x_scale.x, value[1] = d[2] * 256 + d[3] + of.zero.y * of.x_scale.x;
  }
};

// Adds a group to sum[0] and sum[2].
template <typename Codec>
__device__ __forceinline__ void add_group(const Codec& codec, const uint8_t* tile, const uint8_t* x_scale, int g,
                                          int half, const int (&d)[4], float (&sum)[4]) {
  GroupScales of;
  of.load(codec, tile, x_scale, g, half);
  const GroupTerms terms(of, d);
#pragma unroll
  for (int i = 0; i < 2; ++i) sum[2 * i] = fmaf(terms.factor[i], static_cast<float>(terms.value[i]), sum[2 * i]);
}

}  // namespace gemma4::cuda
