// A trial of the wgmma kernel on weights that were just uploaded: does it give what the decode kernel gives? The two
// share nothing but the packed bytes (other instructions, another schedule, other ways of writing out), so a driver or
// a device on which one of them goes wrong is noticed while the model is loaded and not in its answers.
#pragma once

#include "backend/cuda/gemm/gemm_wgmma.h"
#include "backend/cuda/gemm/gemv_bf16.h"

namespace gemma4::cuda {

// |mixed - decode| / |decode| over random activations, the largest of several row counts, with and without geglu.
// Waits. About 3e-3 is what bf16 weights and outputs cost.
double mixed_error(const DeviceMatrix& w, const DecodeWorkspace& decode, const MixedWorkspace& mixed,
                   cudaStream_t stream);

}  // namespace gemma4::cuda
