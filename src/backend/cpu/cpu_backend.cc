#include "backend/cpu/cpu_backend.h"

#include <cstring>

#include "backend/cpu/tiles/bf16_tiles.h"
#include "backend/sample.h"
#include "base/check.h"

namespace gemma4 {
namespace cpu {
namespace {

Matrix matrix_of(const std::shared_ptr<const Packed>& packed, int group) {
  Matrix m;
  m.format = packed->format;
  m.rows = packed->rows;
  m.cols = packed->cols;
  m.group = group;
  m.uploaded = packed;
  m.device_bytes = packed->bytes();
  return m;
}

}  // namespace

CpuBackend::CpuBackend(int threads)
    : used_(std::make_shared<std::atomic<int64_t>>(0)),
      pool_(threads),
      scratch_(pool_.threads(), used_),
      choosers_(static_cast<size_t>(pool_.threads())) {}

std::string CpuBackend::device() const {
  const int threads = pool_.threads();
  const std::string tiles = tiles_ != nullptr ? std::string(", prompts on ") + tiles_->name : "";
  return std::to_string(threads) + (threads == 1 ? " thread" : " threads") + tiles;
}

void CpuBackend::allow_bf16(bool allowed) { tiles_ = allowed ? tile_engine() : nullptr; }

Tensor CpuBackend::alloc(DType type, std::initializer_list<int64_t> shape) {
  Tensor t(nullptr, type, shape);
  auto storage = std::make_unique<Storage>(t.bytes(), used_);
  t.data = storage->data();
  const MutexLock lock(mutex_);
  tensors_.emplace(t.data, std::move(storage));
  return t;
}

void CpuBackend::release(Tensor t) {
  const MutexLock lock(mutex_);
  CHECK(tensors_.erase(t.data) == 1);
}

KvCache CpuBackend::kv_alloc(const KvCacheConfig& config) {
  auto layout = std::make_shared<KvLayout>();
  layout->slots = (config.slots + kPanel - 1) / kPanel * kPanel;
  layout->heads = config.heads;
  layout->dim = config.dim;
  layout->rounds = config.rounds;
  layout->value_dim = (config.dim + 15) / 16 * 16;
  KvCache kv;
  kv.k = alloc(DType::kF32, {layout->slots, config.heads, layout->dim});
  kv.v = alloc(DType::kF32, {layout->slots, config.heads, layout->value_dim});
  layout->keys = static_cast<float*>(kv.k.data);
  layout->values = static_cast<float*>(kv.v.data);
  kv.page = config.page;
  kv.extra = layout;
  return kv;
}

Matrix CpuBackend::upload(std::span<const Matrix> matrices) {
  return matrix_of(pack(matrices, pool_, used_), matrices.front().group);
}

PrepackedWeight CpuBackend::serialize(const Matrix& m) {
  CHECK(m.uploaded != nullptr);
  return cpu::serialize(std::static_pointer_cast<const Packed>(m.uploaded), m.group);
}

Matrix CpuBackend::load_prepacked(const PrepackedWeight& stored) {
  Matrix loaded = matrix_of(cpu::load_prepacked(stored), stored.group);
  mapped_ += static_cast<int64_t>(stored.bytes.size());
  return loaded;
}

void CpuBackend::write(Tensor dst, const void* src) {
  CHECK(dst.contiguous());
  std::memcpy(dst.data, src, dst.bytes());
}

void CpuBackend::read(void* dst, Tensor src) {
  const int64_t row = src.row_size() * static_cast<int64_t>(dtype_size(src.dtype));
  for (int64_t i = 0; i < src.rows(); ++i) {
    std::memcpy(static_cast<char*>(dst) + i * row, src.slice(i, 1).data, row);
  }
}

void CpuBackend::embed(Tensor out, const Matrix& table, Tensor ids, float scale) {
  const Packed& w = packed(table);
  CHECK(is_f32(out) && out.row_size() == w.cols && is_i32(ids, out.rows()));
  pool_.parallel_for(out.rows(), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = out.row<float>(i);
      unpack_packed_row(w, *ids.row<int32_t>(i), row);
      for (int64_t k = 0; k < w.cols; ++k) row[k] *= scale;
    }
  });
}

void CpuBackend::convert(Tensor out, Tensor x) {
  CHECK(is_f32(out) && is_f32(x) && out.rows() == x.rows() && out.row_size() == x.row_size());
  for (int64_t i = 0; i < x.rows(); ++i) std::copy_n(x.row<float>(i), x.row_size(), out.row<float>(i));
}

void CpuBackend::gather(Tensor out, Tensor x, Tensor index) {
  CHECK(out.dtype == x.dtype && out.row_size() == x.row_size() && is_i32(index, out.rows()));
  const size_t bytes = x.row_size() * dtype_size(x.dtype);
  for (int64_t i = 0; i < out.rows(); ++i) {
    std::memcpy(out.slice(i, 1).data, x.slice(*index.row<int32_t>(i), 1).data, bytes);
  }
}

void CpuBackend::scatter(Tensor x, Tensor rows, Tensor index) {
  CHECK(rows.dtype == x.dtype && rows.row_size() == x.row_size() && is_i32(index, rows.rows()));
  const size_t bytes = x.row_size() * dtype_size(x.dtype);
  for (int64_t i = 0; i < rows.rows(); ++i) {
    std::memcpy(x.slice(*index.row<int32_t>(i), 1).data, rows.slice(i, 1).data, bytes);
  }
}

void CpuBackend::sample(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling) {
  CHECK(is_f32(logits) && is_i32(ids, logits.rows()) && logits.rows() == static_cast<int64_t>(sampling.size()));
  pool_.parallel_tasks(logits.rows(), [&](int thread, int64_t i) {
    auto& [copy, candidates] = choosers_[static_cast<size_t>(thread)];
    float* row = logits.row<float>(i);
    if (edits(sampling[i])) {
      copy.assign(row, row + logits.row_size());
      row = copy.data();
    }
    *ids.row<int32_t>(i) = sample_row(row, logits.row_size(), sampling[i], candidates);
  });
}

}  // namespace cpu

std::unique_ptr<Backend> make_cpu(int threads) {
#if defined(__x86_64__)  // what CMakeLists.txt lets the compiler use in all of this folder
  if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("pclmul") || !__builtin_cpu_supports("aes")) {
    throw Error("the cpu backend needs SSE4.2, PCLMULQDQ and AES instructions, which this processor does not have");
  }
#endif
  return std::make_unique<cpu::CpuBackend>(threads);
}

}  // namespace gemma4
