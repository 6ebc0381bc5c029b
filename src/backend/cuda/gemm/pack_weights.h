// Uploads weights: host matrices go in slabs through pinned memory to the device, where kernels pack them.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <span>

#include "backend/cuda/gemm/linear.h"

namespace gemma4::cuda {

class Uploader {
 public:
  Uploader();
  ~Uploader();

  // Fills w.data (allocated, w.layout and w.paired chosen) from `matrices`.
  void fill(const DeviceMatrix& w, std::span<const Matrix> matrices, cudaStream_t stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gemma4::cuda
