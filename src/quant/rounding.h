// Rounding as IEEE 754 and PyTorch do it, written without branches or calls so that the compiler can vectorise it.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace gemma4 {

// To the nearest whole number, ties to even.
inline float round_half_even(float x) {
  constexpr float kWhole = 0x1p23f;  // from here on every float is whole
  const float size = std::fabs(x);
  const float rounded = (size + kWhole) - kWhole;
  return size < kWhole ? std::copysign(rounded, x) : x;
}

// A code as it is stored; NaN becomes the least one.
inline int8_t to_code(float code, float code_min, float code_max) {
  return static_cast<int8_t>(code > code_min ? std::min(code, code_max) : code_min);
}

// To the nearest float16, ties to even, as a float: equal to round_to_f16() of base/bf16.h.
inline float round_to_f16_fast(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits & 0x80000000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1)) & ~0x1fffu;
  // Below 2^-14 a float16's unit is 2^-24, which is the unit of a float in [0.5, 1).
  const uint32_t subnormal = std::bit_cast<uint32_t>((std::bit_cast<float>(magnitude) + 0.5f) - 0.5f);
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? (magnitude > 0x7f800000u ? magnitude : 0x7f800000u) : result;
  return std::bit_cast<float>(result | sign);
}

}  // namespace gemma4
