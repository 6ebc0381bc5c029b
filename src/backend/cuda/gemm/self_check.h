// Checks gemm_wgmma() against gemv_bf16() on weights that were just uploaded. The two share nothing but the packed
// bytes: instructions, schedule and stores differ. So a driver or a device on which one of them fails is noticed while
// the model is loaded, not in its answers. linear.cc calls it for the first uploads of each layout.
#pragma once

#include "backend/cuda/gemm/kernels.h"

namespace gemma4::cuda {

// |wgmma - gemv| / |gemv| over random activations: the largest for several row counts, with and without geglu. Waits.
// bf16 weights and outputs cost about 3e-3.
double wgmma_error(const DeviceMatrix& w, const GemvWorkspace& gemv, const WgmmaWorkspace& wgmma, cudaStream_t stream);

}  // namespace gemma4::cuda
