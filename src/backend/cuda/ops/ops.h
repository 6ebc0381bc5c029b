// The CUDA backend's kernels as plain functions: one for each op of backend.h (which defines them), with device
// tensors and a stream. Each enqueues and returns; a failed launch throws DeviceError. Activations are BF16 or F32,
// queries and what a cache holds F16.
#pragma once

#include <cuda_runtime_api.h>

#include "backend/backend.h"

namespace gemma4::cuda {

void rms_norm(cudaStream_t stream, Tensor out, Tensor x, Tensor weight, float eps);
void add_rms_norm(cudaStream_t stream, Tensor out, Tensor x, Tensor y, Tensor post, float scale, Tensor next,
                  float eps);

void add(cudaStream_t stream, Tensor x, Tensor y, float scale);
void geglu(cudaStream_t stream, Tensor out, Tensor gate_up);
void affine(cudaStream_t stream, Tensor x, Tensor bias, Tensor scale);
void softcap(cudaStream_t stream, Tensor x, float cap);
void convert(cudaStream_t stream, Tensor out, Tensor x);
void gather(cudaStream_t stream, Tensor out, Tensor x, Tensor index);
void scatter(cudaStream_t stream, Tensor x, Tensor rows, Tensor index);
void pool(cudaStream_t stream, Tensor out, Tensor x, Tensor group, float scale);

void rope(cudaStream_t stream, Tensor x, Tensor pos, const Rope& rope);

// Where a cache's element lies. Token slot s, KV head h: page s / page, then [heads, page, row] inside it, so that the
// keys of one head in one page are contiguous. A plain cache has k and v apart, each with row = dim. A compressed one
// (rotated_pairs > 0, KvCacheConfig) keeps one row of dim + 2 * rotated_pairs: V, then K's elements 0 .. rotated-1,
// then its elements dim/2 .. dim/2+rotated-1; k is unused. In a tiled one (the vision tower's) the rows of 8 slots lie
// together as [row / 8][8 slots][8], the tensor cores' core matrices one after the other: kv_view.cuh.
struct KvCacheView {
  void* k = nullptr;  // attend_t (device/element.cuh)
  void* v = nullptr;
  int heads = 0, dim = 0, row = 0;
  bool tiled = false;
  int page = 1;                    // tokens in a page of the layout: those of a table's page, or all slots
  const int32_t* table = nullptr;  // [sequences, table_cols]; null: slot = position
  int table_cols = 0, table_page = 1;
  int page_shift = -1;  // log2 of table_page, or -1
  int64_t table_stride = 0;
  int rotated = 0;                // rotated pairs kept, 0 for a plain cache
  const float* k_norm = nullptr;  // [dim] where rotated > 0
};

void kv_write(cudaStream_t stream, const KvCacheView& kv, Tensor k, Tensor v, Tensor rows);
// query F16; q, k, v all BF16 or all F32. Where they do not fit: the small ops.
bool qk_norm_rope_cache_fits(const Tensor& query, const Tensor& q, const Tensor& k, const Tensor& v);
void qk_norm_rope_cache(cudaStream_t stream, Tensor query, Tensor q, Tensor k, Tensor v, const Backend::QkNorms& norms,
                        Tensor pos, const Rope& rope, const KvCacheView& kv, Tensor rows);

// Scratch that attention's splits meet in; zeroed once, left zeroed in its counters.
struct AttendScratch {
  float* partial = nullptr;  // kAttendPartialBytes
  int* counters = nullptr;   // [kAttendCounters]
  int multiprocessors = 132;
  int64_t shared_most = 0;  // bytes of shared memory that a block may have
  bool warpgroups = false;  // the device is Hopper, and this build has code for it
};
inline constexpr int64_t kAttendPartialBytes = 32 << 20;
inline constexpr int kAttendCounters = 64 * 64;

// out BF16, q F16, both [rows, heads, dim]. `host`: the same rows, or empty while a graph is captured.
void attention(cudaStream_t stream, Tensor out, Tensor q, const KvCacheView& kv, Tensor rows, std::span<const Row> host,
               const AttendScratch& scratch);

}  // namespace gemma4::cuda
