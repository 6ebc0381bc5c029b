#include "backend/cuda/megakernel/recording_backend.h"

#include <bit>

namespace gemma4::cuda {

const DeviceMatrix& device_matrix(const Matrix& m) {
  CHECK(m.uploaded != nullptr);
  return *static_cast<const DeviceMatrix*>(m.uploaded.get());
}

void StepCounter::ran(uint64_t key) {
  const OpCounts& counts = counts_[key];
  if (counts.ops == 0) return;  // not a decode step of one row
  ++stats_.steps;
  stats_.megakernel_steps += counts.megakernel_ops == counts.ops;
  stats_.ops = counts.ops, stats_.megakernel_ops = counts.megakernel_ops;
}

KvCache alloc_kv_cache(Backend& backend, const KvCacheConfig& config) {
  // The vision tower's cache: its attention kernel copies 64 keys at a time.
  const bool tiled = config.page <= 1 && config.dim == 72 && config.rotated_pairs == 0;
  const int all = static_cast<int>(tiled ? (config.slots + 63) / 64 * 64 : config.slots);
  const int page = config.page > 1 ? config.page : all;
  const int64_t slots = (config.slots + page - 1) / page * page;
  const bool compressed = config.rotated_pairs > 0 && (config.dim + 2 * config.rotated_pairs) % 8 == 0;
  const int rotated = compressed ? config.rotated_pairs : 0;
  KvCache kv;
  kv.page = config.page;
  kv.rotated_pairs = config.rotated_pairs;
  kv.v = backend.alloc(backend.attention_type(), {slots, config.heads, config.dim + 2 * rotated});
  if (!compressed) kv.k = backend.alloc(backend.attention_type(), {slots, config.heads, config.dim});
  kv.extra = std::make_shared<KvCacheLayout>(KvCacheLayout{page, config.dim + 2 * rotated, rotated, tiled});
  return kv;
}

KvCacheView kv_cache_view(const KvCache& kv) {
  KvCacheView v;
  v.k = kv.k.data;
  v.v = kv.v.data;
  v.heads = static_cast<int>(kv.v.shape[1]);
  v.row = static_cast<int>(kv.v.shape[2]);
  const auto* extra = static_cast<const KvCacheLayout*>(kv.extra.get());
  CHECK(extra != nullptr);  // kv_alloc() made it
  v.page = extra->page;
  v.tiled = extra->tiled;
  v.rotated = extra->rotated;
  v.dim = v.row - 2 * v.rotated;
  if (v.rotated) {
    CHECK(kv.k_norm && kv.k_norm.dtype == DType::kF32 && kv.k_norm.size() == v.dim);
    v.k_norm = static_cast<const float*>(kv.k_norm.data);
  }
  if (kv.pages) {
    CHECK(kv.pages.dtype == DType::kI32);
    v.table = static_cast<const int32_t*>(kv.pages.data);
    v.table_cols = static_cast<int>(kv.pages.row_size());
    v.table_stride = kv.pages.stride;
    v.table_page = kv.page;
    if (std::has_single_bit(static_cast<unsigned>(kv.page)))
      v.page_shift = std::countr_zero(static_cast<unsigned>(kv.page));
  }
  return v;
}

}  // namespace gemma4::cuda
