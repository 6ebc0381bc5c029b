// CpuBackend: the ops of backend.h on this machine's cores, with float32 activations. Each op is defined in the file of
// its kernel: it checks its arguments, then runs the kernel for the best SIMD target of the machine (Highway's run-time
// dispatch), whose work is split over the thread pool. cpu_backend.cc has the memory and the ops without SIMD code.
#pragma once

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/packed.h"
#include "base/mutex.h"

namespace gemma4::cpu {

constexpr int64_t kMaxHeadDim = 1024;

struct TileEngine;

inline bool is_f32(const Tensor& t) { return t && t.dtype == DType::kF32; }
inline bool is_i32(const Tensor& t, int64_t count) { return t && t.dtype == DType::kI32 && t.size() == count; }

// The KV cache in this backend's layout, one block of memory for each KV head (attention.cc):
//   keys    [heads] [slots / 32] [dim] [32]   one key in a lane, as a panel of Packed has one output in a lane
//   values  [heads] [slots] [dim rounded up to 16]
struct KvLayout {
  int64_t slots = 0;  // a multiple of 32
  int64_t heads = 0, dim = 0, value_dim = 0;
  bool rounds = false;  // KvCacheConfig::rounds
  float* keys = nullptr;
  float* values = nullptr;
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads);

  const char* name() const override { return "cpu"; }
  DType activation_type() const override { return DType::kF32; }
  int64_t memory_used() const override { return used_->load(); }
  std::string device() const override;
  // Mapped weights are page cache, which the machine calls available; a model needs it all the time.
  MemoryLeft memory_left() const override {
    const MemoryLeft left = Backend::memory_left();
    return {std::max<int64_t>(0, left.bytes - mapped_), left.shared};
  }

  Tensor alloc(DType type, std::initializer_list<int64_t> shape) override;
  void release(Tensor t) override;
  KvCache kv_alloc(const KvCacheConfig& config) override;
  void kv_copy(const KvCache& kv, int32_t from, int32_t to) override;
  Matrix upload(std::span<const Matrix> matrices) override;
  std::string layout() const override { return kLayoutName; }
  PrepackedWeight serialize(const Matrix& m) override;
  Matrix load_prepacked(const PrepackedWeight& stored) override;
  void write(Tensor dst, const void* src) override;
  void read(void* dst, Tensor src) override;

  void allow_bf16(bool allowed) override;
  bool rounds_to_bf16() const override { return tiles_ != nullptr; }
  void use_tiles(const TileEngine* engine) { tiles_ = engine; }  // for tests; null: none

  void embed(Tensor out, const Matrix& table, Tensor ids, float scale) override;
  void linear(Tensor out, Tensor x, const Matrix& w) override;
  void rms_norm(Tensor out, Tensor x, Tensor weight, float eps) override;
  void add(Tensor x, Tensor y, float scale) override;
  void geglu(Tensor out, Tensor gate_up) override;
  void rope(Tensor x, Tensor pos, const Rope& rope) override;
  void kv_write(const KvCache& kv, Tensor k, Tensor v, const Rows& rows) override;
  void attention(Tensor out, Tensor q, const KvCache& kv, const Rows& rows) override;
  void convert(Tensor out, Tensor x) override;
  void gather(Tensor out, Tensor x, Tensor index) override;
  void scatter(Tensor x, Tensor rows, Tensor index) override;
  void pool(Tensor out, Tensor x, Tensor group, float scale) override;
  void affine(Tensor x, Tensor bias, Tensor scale) override;
  void softcap(Tensor x, float cap) override;
  void sample(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling) override;

 private:
  Context context() { return {pool_, scratch_}; }

  static const Packed& packed(const Matrix& m) {
    CHECK(m.uploaded != nullptr);
    return *static_cast<const Packed*>(m.uploaded.get());
  }
  static const KvLayout& layout(const KvCache& kv) {
    CHECK(kv.extra != nullptr);
    return *static_cast<const KvLayout*>(kv.extra.get());
  }

  int64_t mapped_ = 0;                          // bytes of weights that lie in a mapped file
  std::shared_ptr<std::atomic<int64_t>> used_;  // bytes; shared with what outlives a call, such as uploaded weights
  Mutex mutex_;                                 // images are encoded while other threads release theirs
  std::unordered_map<void*, std::unique_ptr<Storage>> tensors_ GUARDED_BY(mutex_);
  ThreadPool pool_;
  Scratch scratch_;
  const TileEngine* tiles_ = nullptr;  // for products of many rows
  struct Chooser {  // what sample() reuses
    std::vector<float> copy;
    std::vector<int32_t> candidates;
  };
  std::vector<Chooser> choosers_;  // by thread
};

}  // namespace gemma4::cpu
