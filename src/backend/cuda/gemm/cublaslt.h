// A GEMM of bfloat16 weights and activations through cuBLASLt; gemm_cublaslt.cu calls it. The library is opened with
// dlopen, so that a gemma4 binary stays small and starts without it. Where it is missing, the Error says what to
// install.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "base/tensor.h"

namespace gemma4::cuda {

class CublasLt {
 public:
  CublasLt();  // throws Error when the library cannot be loaded
  ~CublasLt();

  // out = x w^T, or out += x w^T where `add`: w BF16 [rows, cols] with rows `pitch` elements apart; x BF16 [n, cols];
  // out BF16 or F32 [n, rows]. Multiples of 8 elements everywhere. `workspace` is device memory of kWorkspaceBytes
  // bytes.
  void gemm(Tensor out, Tensor x, const void* w, int64_t rows, int64_t pitch, void* workspace, cudaStream_t stream,
            bool add = false);

  static constexpr int64_t kWorkspaceBytes = 32 << 20;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gemma4::cuda
