// EXPERIMENTAL: the linear layer for few rows with x as 16-bit fixed-point numbers, on the integer tensor cores. Chosen
// by GEMMA4_CUDA_DECODE=fixed (stages of four column chunks) or fixed8 (of eight); off otherwise. Not yet run on a GPU.
#pragma once

#include "backend/cuda/linear_decode.h"

namespace gemma4::cuda {

constexpr int64_t kFixedRows = 8;  // the most rows of x that it takes

// residual_norm() of backend.h, with y the product: x = (x + norm(y) * post) * scale; out = norm(x) * next.
struct NormAfter {
  Tensor out;         // BF16 [n, rows], or empty
  Tensor x;           // F32 [n, rows]
  Tensor post, next;  // F32 [rows]
  float scale, eps;
};

// Whether it can take the place of linear_decode() for these weights and rows of x.
bool linear_fixed_fits(const DeviceMatrix& w, int64_t n, const DecodeWorkspace& workspace);

// As linear_decode(). `stage_chunks`: 4 or 8.
void linear_fixed(Tensor out, Tensor x, const DeviceMatrix& w, bool geglu, int stage_chunks,
                  const DecodeWorkspace& workspace, cudaStream_t stream);

// y = x w^T, F32, and then `after`, in one launch. False, with nothing done, where shapes or types do not fit.
bool linear_fixed_norm(Tensor y, Tensor x, const DeviceMatrix& w, const NormAfter& after,
                       const DecodeWorkspace& workspace, cudaStream_t stream);

}  // namespace gemma4::cuda
