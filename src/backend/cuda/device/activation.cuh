// Functions of one float with the hardware's fast exponential.
#pragma once

#include <cuda_runtime.h>

inline constexpr float kLog2e = 1.4426950408889634f;

// 2^x, flushing tiny results to zero; 2^-inf = 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// gelu_tanh(x) = x / 2 (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3). There are two variants, whose results
// differ in the last bits; each caller keeps the one with which its results were recorded.

// With an exact division, in the epilogues of linear layers. tanh(u) = 1 - 2 / (exp(2 u) + 1); where exp overflows to
// infinity, that gives 1.
__device__ __forceinline__ float gelu_tanh(float x) {
  const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (2.0f - 2.0f / (__expf(2.0f * inner) + 1.0f));
}

// With the hardware's approximate division, in the elementwise op: x / (1 + exp(-2 u)), to 1e-6 of x.
__device__ __forceinline__ float gelu_tanh_fast_division(float x) {
  const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return __fdividef(x, 1.0f + __expf(-2.0f * u));
}
