// The linear layer for few rows: one pass over the weight bytes at the speed of memory.
#pragma once

#include <cuda.h>

#include "backend/cuda/gemm/linear.h"

namespace gemma4::cuda {

// Partial sums of panels that several blocks share. Words are kNothing until a block has written them.
struct DecodeWorkspace {
  float* partial = nullptr;  // [blocks, 128, kDecodeRows], all bytes 0xff between launches
  int blocks = 0;            // one for each multiprocessor
  int shared_most = 0;       // bytes of shared memory that a block may have: 227 KB on Hopper, 99 KB on desktop parts
};
constexpr int64_t decode_workspace_bytes(int blocks) { return static_cast<int64_t>(blocks) * 128 * 16 * 4; }

// n <= kDecodeRows; x and out rows 16-byte aligned; cols a multiple of 64. `geglu`: out has rows / 2 columns.
void linear_decode(Tensor out, Tensor x, const DeviceMatrix& w, bool geglu, const DecodeWorkspace& workspace,
                   cudaStream_t stream);

}  // namespace gemma4::cuda
