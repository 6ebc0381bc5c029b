// The op attention() and the kernels it chooses from (attention.cu). cuda_backend.cc calls attention(); the rest is for
// this folder. Each function enqueues on the stream and returns; a failed launch throws DeviceError.
#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "backend/backend.h"
#include "backend/cuda/attention/kv_cache_view.h"

namespace gemma4::cuda {

// Device memory in which the splits of flash decoding exchange their partial results, and what attention.cu must know
// of the device. Counters begin as zeros, and every launch leaves them zeroed.
struct AttentionWorkspace {
  float* partial = nullptr;      // kAttentionPartialBytes
  int* counters = nullptr;       // [kAttentionCounters]
  int sms = 132;                 // SMs of the device
  int64_t shared_bytes_max = 0;  // of shared memory that a CTA may have
  bool has_wgmma = false;        // the device is Hopper, and this build has code for it
};
inline constexpr int64_t kAttentionPartialBytes = 32 << 20;
inline constexpr int kAttentionCounters = 64 * 64;

// out BF16, q F16, both [rows, heads, dim]. `host`: the same rows, or empty while a graph is captured.
void attention(cudaStream_t stream, Tensor out, Tensor q, const KvCacheView& kv, Tensor rows, std::span<const Row> host,
               const AttentionWorkspace& workspace);

// One launch: out BF16, q attention_t (device/element.cuh), both [rows, q_heads, dim] with row strides, and for each
// row the interval of keys it sees.
struct AttentionCall {
  void* out;
  const void* q;
  const int32_t* rows;  // [count, 4] Row
  int64_t out_stride, q_stride;
  int count, q_heads;
};

// Any head size up to 512 and any GQA group: a CTA for each row and head. Serves odd shapes.
void attention_naive(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv);

// Few rows over long caches: split-K flash decoding. A CTA takes all query heads of one KV head and a range of its
// keys; the last CTA of a head merges the splits. Head sizes 256 and 512.
bool flash_decode_fits(const AttentionCall& call, const KvCacheView& kv, const AttentionWorkspace& workspace);
void flash_decode(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv,
                  const AttentionWorkspace& workspace);

// Many rows: flash attention with wgmma. Head sizes 72, 256 and 512; flash_prefill_fits() answers for both functions.
bool flash_prefill_fits(const AttentionCall& call, const KvCacheView& kv);
void flash_prefill(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv);       // 72 and 256
void flash_prefill_d512(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv);  // 512

// The same for devices without wgmma, with mma.sync and at most 99 KB of shared memory. It also takes the tiled caches
// of flash_vision().
bool flash_prefill_mma_fits(const AttentionCall& call, const KvCacheView& kv);
void flash_prefill_mma(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv);

// Whole images: head size 72, as many KV heads as query heads, a cache without a page table.
bool flash_vision_fits(const AttentionCall& call, const KvCacheView& kv);
void flash_vision(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv, int sms);

}  // namespace gemma4::cuda
