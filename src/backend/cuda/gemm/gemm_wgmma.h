// The linear layer for many rows: packed weights straight to the tensor cores (Hopper's wgmma).
#pragma once

#include "backend/cuda/gemm/linear.h"

namespace gemma4::cuda {

// Sums of tiles that several blocks share, and a flag for each block that says its share is there.
struct MixedWorkspace {
  float* partial = nullptr;   // [blocks, 256 x 128]
  uint32_t* ready = nullptr;  // [blocks], zero between launches
  int blocks = 0;             // one for each multiprocessor
};
constexpr int64_t mixed_partial_bytes(int blocks) { return static_cast<int64_t>(blocks) * 256 * 128 * 4; }

// out BF16, or F32 without `geglu`; x and out rows 16-byte aligned; rows of each part a multiple of 8, cols of 64.
// `geglu`: w.paired, and out has rows / 2 columns. Needs compute capability 9.0.
void linear_mixed(Tensor out, Tensor x, const DeviceMatrix& w, bool geglu, const MixedWorkspace& workspace,
                  cudaStream_t stream);

}  // namespace gemma4::cuda
