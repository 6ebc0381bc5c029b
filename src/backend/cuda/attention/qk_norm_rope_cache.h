// The ops between the q, k, v product and attention: QK norm, RoPE and the write into the KV cache. cuda_backend.cc
// calls them. Each enqueues on the stream and returns; a failed launch throws DeviceError.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.h"
#include "backend/cuda/attention/kv_cache_view.h"

namespace gemma4::cuda {

void rope(cudaStream_t stream, Tensor x, Tensor pos, const Rope& rope);
void kv_write(cudaStream_t stream, const KvCacheView& kv, Tensor k, Tensor v, Tensor rows);

// The fused op. query F16; q, k, v all BF16 or all F32. qk_norm_rope_cache_fits() says whether it takes these tensors;
// if not, the caller uses the small ops.
bool qk_norm_rope_cache_fits(const Tensor& query, const Tensor& q, const Tensor& k, const Tensor& v);
void qk_norm_rope_cache(cudaStream_t stream, Tensor query, Tensor q, Tensor k, Tensor v, const Backend::QkNorms& norms,
                        Tensor pos, const Rope& rope, const KvCacheView& kv, Tensor rows);

}  // namespace gemma4::cuda
