// CpuBackend: memory and arguments; the work is in kernels.h.
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "backend/cpu/kernels.h"
#include "backend/sample.h"
#include "base/check.h"

namespace gemma4 {
namespace cpu {

void linear_int4(const Context&, const Tensor& out, const Tensor& x, const Packed& w);
void linear_int8(const Context&, const Tensor& out, const Tensor& x, const Packed& w);
void linear_float(const Context&, const Tensor& out, const Tensor& x, const Packed& w);
void linear_kquants(const Context&, const Tensor& out, const Tensor& x, const Packed& w);
void linear_blocks(const Context&, const Tensor& out, const Tensor& x, const Packed& w);

void linear(const Context& c, const Tensor& out, const Tensor& x, const Packed& w) {
  if (x.rows() == 0) return;
  switch (w.layout) {
    case Layout::kInt4:
      return linear_int4(c, out, x, w);
    case Layout::kInt8:
      return linear_int8(c, out, x, w);
    case Layout::kQ4K:
    case Layout::kQ6K:
      return linear_kquants(c, out, x, w);
    case Layout::kBlocks:
      return linear_blocks(c, out, x, w);
    default:
      return linear_float(c, out, x, w);
  }
}

Scratch::Scratch(int threads, std::shared_ptr<std::atomic<int64_t>> used)
    : used_(std::move(used)), local_(threads), local_size_(threads) {}

float* Scratch::grow(std::unique_ptr<Storage>& storage, int64_t& size, int64_t floats) {
  if (floats > size || !storage) {
    storage.reset();
    storage = std::make_unique<Storage>(floats * sizeof(float), used_);
    size = floats;
  }
  return reinterpret_cast<float*>(storage->data());
}

float* Scratch::shared(int64_t floats) { return grow(shared_, shared_size_, floats); }
void Scratch::reserve_local(int64_t floats) {
  for (size_t i = 0; i < local_.size(); ++i) grow(local_[i], local_size_[i], floats);
}

namespace {

bool is_f32(const Tensor& t) { return t && t.dtype == DType::kF32; }
bool is_i32(const Tensor& t, int64_t count) { return t && t.dtype == DType::kI32 && t.size() == count; }

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads)
      : used_(std::make_shared<std::atomic<int64_t>>(0)),
        pool_(threads),
        scratch_(pool_.threads(), used_),
        choosers_(pool_.threads()) {}

  const char* name() const override { return "cpu"; }
  DType activation_type() const override { return DType::kF32; }
  int64_t memory_used() const override { return used_->load(); }

  Tensor alloc(DType type, std::initializer_list<int64_t> shape) override {
    Tensor t(nullptr, type, shape);
    auto storage = std::make_unique<Storage>(t.bytes(), used_);
    t.data = storage->data();
    std::lock_guard lock(mutex_);
    tensors_.emplace(t.data, std::move(storage));
    return t;
  }

  void release(Tensor t) override {
    std::lock_guard lock(mutex_);
    CHECK(tensors_.erase(t.data) == 1);
  }

  KvCache kv_alloc(const KvCacheConfig& config) override {
    auto layout = std::make_shared<cpu::KvLayout>();
    layout->slots = (config.slots + cpu::kPanel - 1) / cpu::kPanel * cpu::kPanel;
    layout->heads = config.heads;
    layout->dim = config.dim;
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

  void kv_release(const KvCache&) override {}  // the last KvCache to go frees its storage

  void kv_copy(const KvCache& kv, int32_t from, int32_t to) override {
    const cpu::KvLayout& c = layout(kv);
    for (int64_t i = 0; i < kv.page; ++i) {
      cpu::kv_copy_slot(c, int64_t{from} * kv.page + i, int64_t{to} * kv.page + i);
    }
  }

  Matrix upload(std::span<const Matrix> parts) override {
    return matrix_of(cpu::pack(parts, pool_, used_), parts.front().group);
  }

  std::string layout() const override { return cpu::kLayoutName; }

  PrepackedWeight serialize(const Matrix& m) override {
    CHECK(m.uploaded != nullptr);
    return cpu::store(std::static_pointer_cast<const cpu::Packed>(m.uploaded), m.group);
  }

  Matrix load_prepacked(const PrepackedWeight& stored) override {
    return matrix_of(cpu::load_prepacked(stored), stored.group);
  }

  void write(Tensor dst, const void* src) override {
    CHECK(dst.contiguous());
    std::memcpy(dst.data, src, dst.bytes());
  }

  void read(void* dst, Tensor src) override {
    const int64_t row = src.row_size() * static_cast<int64_t>(dtype_size(src.dtype));
    for (int64_t i = 0; i < src.rows(); ++i) {
      std::memcpy(static_cast<char*>(dst) + i * row, src.slice(i, 1).data, row);
    }
  }

  void embed(Tensor out, const Matrix& table, Tensor ids, float scale) override {
    const cpu::Packed& w = packed(table);
    CHECK(is_f32(out) && out.row_size() == w.cols && is_i32(ids, out.rows()));
    pool_.parallel_for(out.rows(), 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* row = out.row<float>(i);
        cpu::unpack_packed_row(w, *ids.row<int32_t>(i), row);
        for (int64_t k = 0; k < w.cols; ++k) row[k] *= scale;
      }
    });
  }

  void linear(Tensor out, Tensor x, const Matrix& w) override {
    CHECK(is_f32(out) && is_f32(x) && out.rows() == x.rows());
    CHECK(x.row_size() == w.cols && out.row_size() == w.rows && out.data != x.data);
    cpu::linear(context(), out, x, packed(w));
  }

  void rms_norm(Tensor out, Tensor x, Tensor weight, float eps) override {
    CHECK(is_f32(out) && is_f32(x) && out.rows() == x.rows() && out.row_size() == x.row_size());
    CHECK(!weight || (is_f32(weight) && weight.size() == x.shape[x.rank - 1]));
    cpu::rms_norm(context(), out, x, static_cast<const float*>(weight.data), eps);
  }

  void add(Tensor x, Tensor y, float scale) override {
    CHECK(is_f32(x) && is_f32(y) && x.rows() == y.rows() && x.row_size() == y.row_size());
    cpu::add(context(), x, y, scale);
  }

  void geglu(Tensor out, Tensor gate_up) override {
    CHECK(is_f32(out) && is_f32(gate_up) && out.rows() == gate_up.rows());
    CHECK(2 * out.row_size() == gate_up.row_size());
    cpu::geglu(context(), out, gate_up);
  }

  void rope(Tensor x, Tensor pos, const Rope& rope) override {
    const int64_t dim = x.shape[2];
    CHECK(is_f32(x) && x.rank == 3 && dim <= cpu::kMaxHeadDim);
    CHECK(rope.block > 0 && rope.block % 2 == 0 && dim % rope.block == 0 && rope.inv_freq.size() == rope.block / 2);
    CHECK(is_i32(pos, x.rows() * (dim / rope.block)));
    cpu::rope(context(), x, pos, rope);
  }

  void kv_write(const KvCache& kv, Tensor k, Tensor v, const Rows& rows) override {
    const cpu::KvLayout& c = layout(kv);
    CHECK(is_f32(k) && is_f32(v) && k.rows() == v.rows() && k.rows() == static_cast<int64_t>(rows.host.size()));
    CHECK(k.row_size() == c.heads * c.dim && v.row_size() == k.row_size());
    cpu::kv_write(context(), c, kv, k, v, rows.host);
  }

  void attention(Tensor out, Tensor q, const KvCache& kv, const Rows& rows) override {
    const cpu::KvLayout& c = layout(kv);
    CHECK(is_f32(out) && is_f32(q) && q.rank == 3 && q.shape[2] == c.dim && q.shape[1] % c.heads == 0);
    CHECK(out.rows() == q.rows() && out.row_size() == q.row_size());
    CHECK(q.rows() == static_cast<int64_t>(rows.host.size()));
    cpu::attention(context(), out, q, c, kv, rows.host);
  }

  void convert(Tensor out, Tensor x) override {
    CHECK(is_f32(out) && is_f32(x) && out.rows() == x.rows() && out.row_size() == x.row_size());
    for (int64_t i = 0; i < x.rows(); ++i) std::copy_n(x.row<float>(i), x.row_size(), out.row<float>(i));
  }

  void gather(Tensor out, Tensor x, Tensor index) override {
    CHECK(out.dtype == x.dtype && out.row_size() == x.row_size() && is_i32(index, out.rows()));
    const size_t bytes = x.row_size() * dtype_size(x.dtype);
    for (int64_t i = 0; i < out.rows(); ++i) {
      std::memcpy(out.slice(i, 1).data, x.slice(*index.row<int32_t>(i), 1).data, bytes);
    }
  }

  void scatter(Tensor x, Tensor rows, Tensor index) override {
    CHECK(rows.dtype == x.dtype && rows.row_size() == x.row_size() && is_i32(index, rows.rows()));
    const size_t bytes = x.row_size() * dtype_size(x.dtype);
    for (int64_t i = 0; i < rows.rows(); ++i) {
      std::memcpy(x.slice(*index.row<int32_t>(i), 1).data, rows.slice(i, 1).data, bytes);
    }
  }

  void pool(Tensor out, Tensor x, Tensor group, float scale) override {
    CHECK(is_f32(out) && is_f32(x) && out.row_size() == x.row_size() && is_i32(group, x.rows()));
    const int32_t* groups = static_cast<const int32_t*>(group.data);
    for (int64_t i = 0; i < x.rows(); ++i) CHECK(groups[i] >= 0 && groups[i] < out.rows());
    cpu::pool(context(), out, x, groups, scale);
  }

  void affine(Tensor x, Tensor bias, Tensor scale) override {
    CHECK(is_f32(x) && is_f32(bias) && is_f32(scale));
    CHECK(bias.size() == x.row_size() && scale.size() == x.row_size());
    cpu::affine(context(), x, static_cast<const float*>(bias.data), static_cast<const float*>(scale.data));
  }

  void softcap(Tensor x, float cap) override {
    CHECK(is_f32(x) && cap > 0);
    cpu::softcap(context(), x, cap);
  }

  void sample(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling) override {
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

 private:
  cpu::Context context() { return {pool_, scratch_}; }

  static Matrix matrix_of(const std::shared_ptr<const cpu::Packed>& packed, int group) {
    Matrix m;
    m.format = packed->format;
    m.rows = packed->rows;
    m.cols = packed->cols;
    m.group = group;
    m.uploaded = packed;
    m.device_bytes = packed->bytes();
    return m;
  }

  static const cpu::Packed& packed(const Matrix& m) {
    CHECK(m.uploaded != nullptr);
    return *static_cast<const cpu::Packed*>(m.uploaded.get());
  }

  static const cpu::KvLayout& layout(const KvCache& kv) {
    CHECK(kv.extra != nullptr);
    return *static_cast<const cpu::KvLayout*>(kv.extra.get());
  }

  std::shared_ptr<std::atomic<int64_t>> used_;  // bytes; shared with what outlives a call, such as uploaded weights
  std::mutex mutex_;                            // images are encoded while others release theirs
  std::unordered_map<void*, std::unique_ptr<cpu::Storage>> tensors_;
  ThreadPool pool_;
  cpu::Scratch scratch_;
  struct Chooser {  // what sample() reuses
    std::vector<float> copy;
    std::vector<int32_t> candidates;
  };
  std::vector<Chooser> choosers_;  // by thread
};

}  // namespace
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
