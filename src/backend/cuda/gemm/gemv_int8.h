// The linear layer for few rows with x as 16-bit fixed-point numbers, on the integer tensor cores: fewer instructions
// for a weight than linear_decode.h where one or two rows leave the tensor cores idle.
#pragma once

#include "backend/cuda/gemm/gemv_bf16.h"

namespace gemma4::cuda {

constexpr int64_t kFixedRows = 8;  // the most rows of x that it takes
constexpr int64_t kFixedBest = 2;  // the most for which it is the faster: 7.61 against 8.36 ms a step of the 31B at 1,
                                   // 8.30 against 8.77 at 2, 9.43 against 8.93 at 4

// Whether it can take the place of linear_decode() for these weights and rows of x.
bool linear_fixed_fits(const DeviceMatrix& w, int64_t n, const DecodeWorkspace& workspace);

// As linear_decode().
void linear_fixed(Tensor out, Tensor x, const DeviceMatrix& w, bool geglu, const DecodeWorkspace& workspace,
                  cudaStream_t stream);

}  // namespace gemma4::cuda
