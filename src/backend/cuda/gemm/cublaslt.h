// cuBLASLt, loaded when it is first needed: a matrix product of bfloat16 weights and activations. It is opened with
// dlopen, so that a gemma4 binary stays small and starts without it; where it is missing, the Error says what to
// install.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "base/tensor.h"

namespace gemma4::cuda {

class Library {
 public:
  Library();  // throws Error when the library cannot be loaded
  ~Library();

  // out = x w^T, or out += x w^T where `add`: w BF16 [rows, cols] with rows `pitch` elements apart; x BF16 [n, cols];
  // out BF16 or F32 [n, rows]. Multiples of 8 elements everywhere. `workspace` is device memory of kWorkspace bytes.
  void multiply(Tensor out, Tensor x, const void* w, int64_t rows, int64_t pitch, void* workspace, cudaStream_t stream,
                bool add = false);

  static constexpr int64_t kWorkspace = 32 << 20;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gemma4::cuda
