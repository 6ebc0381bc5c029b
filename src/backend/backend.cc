#include "backend/backend.h"

#include "backend/host_memory.h"
#include "distributed/process_group.h"

namespace gemma4 {

PrepackedWeight Backend::serialize(const Matrix&) {
  throw Error("the " + std::string(name()) + " backend cannot save its weights to a program");
}

Matrix Backend::load_prepacked(const PrepackedWeight&) {
  throw Error("the " + std::string(name()) + " backend cannot take its weights from a program");
}

Backend::MemoryLeft Backend::memory_left() const { return {available_host_memory(), true}; }

KvCache Backend::kv_alloc(const KvCacheConfig& config) {
  KvCache kv;
  kv.k = alloc(activation_type(), {config.slots, config.heads, config.dim});
  kv.v = alloc(activation_type(), {config.slots, config.heads, config.dim});
  kv.page = config.page;
  return kv;
}

void Backend::kv_copy(const KvCache& kv, int32_t from, int32_t to) {
  for (const Tensor& cache : {kv.k, kv.v}) {
    if (!cache) continue;
    const Tensor source = cache.slice(int64_t{from} * kv.page, kv.page);
    std::vector<std::byte> bytes(source.bytes());
    read(bytes.data(), source);
    write(cache.slice(int64_t{to} * kv.page, kv.page), bytes.data());
  }
}

void Backend::kv_release(const KvCache& kv) {
  if (kv.k) release(kv.k);
  if (kv.v) release(kv.v);
}

void Backend::add_rms_norm(Tensor out, Tensor x, Tensor y, Tensor post, float scale, Tensor next, float eps) {
  rms_norm(y, y, post, eps);
  add(x, y, scale);
  if (out) rms_norm(out, x, next, eps);
}

void Backend::linear_geglu(Tensor out, Tensor x, const Matrix& gate_up, Tensor scratch) {
  linear(scratch, x, gate_up);
  geglu(out, scratch);
}

void Backend::qk_norm_rope_cache(Tensor query, Tensor q, Tensor k, Tensor v, Tensor scratch, const QkNorms& norms,
                                 Tensor pos, const Rope& rope_by, const KvCache& kv, const Rows& rows) {
  const Tensor values = v ? v : scratch;
  rms_norm(values, v ? v : k, Tensor(), norms.eps);  // V = K on full layers, read before K's own norm
  rms_norm(query, q, norms.q, norms.eps);
  rms_norm(k, k, norms.k, norms.eps);
  rope(query, pos, rope_by);
  rope(k, pos, rope_by);
  kv_write(kv, k, values, rows);
}

int Backend::world() const { return group_ ? group_->size() : 1; }

void Backend::all_reduce(Tensor x) {
  if (group_) group_->all_reduce(rank_, x);
}

void Backend::broadcast(Tensor x) {
  if (group_) group_->broadcast(rank_, x);
}

void Backend::gather_columns(Tensor x, std::span<const int64_t> begins) {
  if (group_) group_->gather_columns(rank_, x, begins);
}

void Backend::abort(const std::string& why) {
  if (group_) group_->abort(why);
}

std::unique_ptr<Backend> make_backend(const std::string& name, int threads) {
  if (name == "ref") return make_ref();
  if (name == "cpu") return make_cpu(threads);
  if (name == "cuda") return make_cuda(0);
  throw Error("there is no backend '" + name + "'; choose ref, cpu or cuda");
}

}  // namespace gemma4
