// The GPU that the benchmarks of the CUDA backend share.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "base/check.h"

namespace gemma4 {

// Null if there is none.
inline Backend* gpu() {
  static const std::unique_ptr<Backend> backend = [] {
    try {
      return make_cuda(0);
    } catch (const Error&) {
      return std::unique_ptr<Backend>();
    }
  }();
  return backend.get();
}

}  // namespace gemma4
