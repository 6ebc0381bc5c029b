// KvCacheView: how the CUDA kernels see the KV cache of one layer. CudaBackend makes it from a KvCache (kv_cache.h).
#pragma once

#include <cstdint>

namespace gemma4::cuda {

// The address of an element. Token slot s, KV head h: page s / page, then [heads, page, row] inside it, so that the
// keys of one head in one page are contiguous. A plain cache has k and v apart, each with row = dim. A compressed one
// (rotated_pairs > 0, KvCacheConfig) keeps one row of dim + 2 * rotated_pairs: V, then K's elements 0 .. rotated-1,
// then its elements dim/2 .. dim/2+rotated-1; k is unused. A tiled one (the vision tower's) stores the rows of 8 slots
// together as [row / 8][8 slots][8]: the core matrices of wgmma, one after the other (kv_cache.cuh).
struct KvCacheView {
  void* k = nullptr;  // attention_t (device/element.cuh)
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

}  // namespace gemma4::cuda
