// From the run-time type of a Tensor to the compile-time type of a kernel, and what launchers ask about a Tensor.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "base/check.h"
#include "base/tensor.h"

namespace gemma4::cuda {

// Calls body(T*) with the element type of `type`: BF16 or F32.
template <typename Body>
void with_type(DType type, Body&& body) {
  if (type == DType::kBF16) return body(static_cast<__nv_bfloat16*>(nullptr));
  CHECK(type == DType::kF32);
  body(static_cast<float*>(nullptr));
}

// The same for tensors that may also be F16: inputs of attention, and inputs of linear layers with bf16 weights.
template <typename Body>
void with_wider_type(DType type, Body&& body) {
  if (type == DType::kF16) return body(static_cast<__half*>(nullptr));
  with_type(type, body);
}

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data);
}

// Whether a vector of `bytes` can be read at an address.
inline bool aligned(const void* address, int bytes = 16) { return reinterpret_cast<uintptr_t>(address) % bytes == 0; }

// The same for every row of 16-bit elements, `stride` elements apart.
inline bool aligned_rows(const void* rows, int64_t stride, int bytes = 16) {
  return aligned(rows, bytes) && stride * 2 % bytes == 0;
}

// Whether eight neighbouring elements can be read at once at every multiple of 8 in every row.
inline bool aligned8(const Tensor& t) {
  const int64_t item = static_cast<int64_t>(dtype_size(t.dtype));
  return aligned(t.data) && (t.rows() <= 1 || t.stride * item % 16 == 0);
}

inline int64_t last_dim(const Tensor& t) { return t.rank == 0 ? 1 : t.shape[t.rank - 1]; }

}  // namespace gemma4::cuda
