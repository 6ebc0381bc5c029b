// The norms and the elementwise ops of the CUDA backend as plain functions of device tensors and a stream. backend.h
// defines each op. Each function enqueues and returns; a failed launch throws DeviceError. Activations are BF16 or F32.
// Attention has a folder of its own, and so have the linear layers (gemm/).
#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.h"

namespace gemma4::cuda {

void rms_norm(cudaStream_t stream, Tensor out, Tensor x, Tensor weight, float eps);
void add_rms_norm(cudaStream_t stream, Tensor out, Tensor x, Tensor y, Tensor post, float scale, Tensor next,
                  float eps);

void add(cudaStream_t stream, Tensor x, Tensor y, float scale);
void geglu(cudaStream_t stream, Tensor out, Tensor gate_up);

// Whether this binary has code for the current device.
bool has_device_code();
void affine(cudaStream_t stream, Tensor x, Tensor bias, Tensor scale);
void softcap(cudaStream_t stream, Tensor x, float cap);
void convert(cudaStream_t stream, Tensor out, Tensor x);
void gather(cudaStream_t stream, Tensor out, Tensor x, Tensor index);
void scatter(cudaStream_t stream, Tensor x, Tensor rows, Tensor index);
void pool(cudaStream_t stream, Tensor out, Tensor x, Tensor group, float scale);

}  // namespace gemma4::cuda
