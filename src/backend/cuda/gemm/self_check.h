// Checks gemm_wgmma() and gemm_mma() against gemv_bf16() on weights that were just uploaded. They share nothing but the
// packed bytes: instructions, schedule and stores differ. So a driver or a device on which one of them fails is noticed
// while the model is loaded, not in its answers. linear.cc calls it for the first uploads of each layout.
#pragma once

#include "backend/cuda/gemm/kernels.h"

namespace gemma4::cuda {

// |gemm - gemv| / |gemv| over random activations: the largest for several row counts, with and without geglu. `name` is
// what a warning calls the kernel. Waits. bf16 weights and outputs cost about 3e-3.
double gemm_error(Kernel kernel, const char* name, const DeviceMatrix& w, LinearWorkspace& workspace,
                  cudaStream_t stream);

}  // namespace gemma4::cuda
