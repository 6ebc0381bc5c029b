// The 16-bit type of attention: queries, keys, values and softmax weights; its products are summed in float32. float16
// has 11 bits of mantissa where bfloat16 has 8, at the same speed and size, and its range is enough here: q, k and v
// come out of an RMS norm, so no element exceeds sqrt(dim) (v) or sqrt(dim) times the largest norm weight (q, k; and
// q * k_norm of a compressed cache). Norm weights of 2900 would be needed to leave the range at head size 512; should a
// checkpoint have them, conversions give the largest number, 65504, and never an infinity.
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

// Former name, used by device/tile.cuh and device/wgmma.cuh.
#define ATTEND_OPERANDS ATTENTION_OPERANDS

// Softmax weights are multiplied by 2^10 (and so is their sum, which divides the result): from 2^-24 of the largest on
// they are normal float16 numbers, and what is lost below is less than 2^-35 of the largest.
inline constexpr float kWeightLift = 10.0f;
