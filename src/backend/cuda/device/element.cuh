// The 16-bit type of attention: queries, keys, values and softmax weights. Its products are summed in float32. float16
// has 11 bits of mantissa where bfloat16 has 8, at the same speed and size. Its range is enough here: q, k and v are
// outputs of an RMSNorm, so no element exceeds sqrt(dim) (v) or sqrt(dim) times the largest norm weight (q, k, and
// q * k_norm of a compressed cache). To leave the range at head size 512, norm weights of 2900 would be needed. If a
// checkpoint has them, conversions saturate at 65504 and never give an infinity.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/device/convert.cuh"
#include "base/dtype.h"

using attention_t = __half;
inline constexpr gemma4::DType kAttentionType = gemma4::DType::kF16;
#define ATTENTION_OPERANDS "f16.f16"  // in the names of mma and wgmma instructions

// Two neighbours, `low` first, saturated.
__device__ __forceinline__ uint32_t pack_attention(float low, float high) { return pack_f16x2(low, high); }
__device__ __forceinline__ float2 unpack_attention(uint32_t bits) { return unpack_f16x2(bits); }


// Softmax weights are multiplied by 2^10, and so is their sum, by which the result is divided. Weights down to 2^-24 of
// the largest are then normal float16 numbers; smaller ones lose less than 2^-35 of the largest.
inline constexpr float kWeightLift = 10.0f;
