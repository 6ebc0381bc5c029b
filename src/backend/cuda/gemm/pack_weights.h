// Uploading weights: host parts, in slabs through pinned memory, to the packed layouts.
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

  // Fills w.data (allocated, w.layout and w.paired chosen) from `parts`.
  void fill(const DeviceMatrix& w, std::span<const Matrix> parts, cudaStream_t stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gemma4::cuda
