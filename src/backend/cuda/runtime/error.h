// CUDA_CHECK(call) turns a CUDA failure into a DeviceError, with one sentence that says which call failed and why. A
// GPU is part of the world, so nothing here aborts.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "base/check.h"

namespace gemma4::cuda {

[[noreturn]] inline void throw_device_error(cudaError_t error, const char* call, const char* file, int line) {
  const char* name = file;
  for (const char* c = file; *c; ++c) {
    if (*c == '/') name = c + 1;
  }
  throw DeviceError(std::string("the GPU failed: ") + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) +
                    ", " + std::string(call).substr(0, 60) + ", " + name + ":" + std::to_string(line) + ")");
}

}  // namespace gemma4::cuda

#define CUDA_CHECK(call)                                                               \
  do {                                                                                 \
    const cudaError_t cuda_check_error = (call);                                       \
    if (cuda_check_error != cudaSuccess) {                                             \
      ::gemma4::cuda::throw_device_error(cuda_check_error, #call, __FILE__, __LINE__); \
    }                                                                                  \
  } while (0)
