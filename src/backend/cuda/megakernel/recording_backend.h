// RecordingBackend: decides for each op of a decode step whether it runs in the megakernel or by its own kernel. It has
// everything that this depends on: element types, the layout of KV caches, and the ops that the megakernel can take.
// Each is offered to the recorder and runs by its own kernel if that declines. CudaBackend derives from it and has the
// memory and the kernels; recording_backend_test.cc has neither and needs no GPU, but sees the same decisions.
//
// `Device` is the derived class. It has the ops' own kernels, which put their work on `stream`, now or when the
// recorder gives up a list:
//   void run_linear(Tensor out, Tensor x, const DeviceMatrix& w, cudaStream_t stream);
//   void run_linear_geglu(Tensor out, Tensor x, const DeviceMatrix& w, Tensor scratch, cudaStream_t stream);
//   void run_qk_norm_rope_cache(Tensor query, Tensor q, Tensor k, Tensor v, const QkNorms& norms, Tensor pos,
//                               const Rope& rope, const KvCacheView& kv, Tensor rows, cudaStream_t stream);
//   void run_attention(Tensor out, Tensor q, const KvCacheView& kv, const Rows& rows, cudaStream_t stream);
//   void run_add_rms_norm(Tensor out, Tensor x, Tensor y, Tensor post, float scale, Tensor next, float eps,
//                         cudaStream_t stream);
//   void run_all_reduce(Tensor x, cudaStream_t stream);
// and
//   cudaStream_t device_stream();
//   bool capturing() const;  // a graph; run_attention() gets no host rows then
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <utility>

#include "backend/backend.h"
#include "backend/cuda/attention/kv_cache_view.h"
#include "backend/cuda/attention/qk_norm_rope_cache.h"
#include "backend/cuda/gemm/linear.h"
#include "backend/cuda/megakernel/recorder.h"
#include "base/check.h"

namespace gemma4 {

namespace cuda {

// What KvCache::extra points to.
struct KvCacheLayout {
  int page, row, rotated;
  bool tiled;
};
// Backend::kv_alloc() with memory of backend.alloc().
KvCache alloc_kv_cache(Backend& backend, const KvCacheConfig& config);
KvCacheView kv_cache_view(const KvCache& kv);

const DeviceMatrix& device_matrix(const Matrix& m);

// Decode steps and how many of their ops ran in the megakernel.
class StepCounter {
 public:
  void recorded(uint64_t key, const OpCounts& counts) { counts_[key] = counts; }
  void ran(uint64_t key);  // a step recorded under `key` was run or replayed
  const Backend::Stats& stats() const { return stats_; }

 private:
  std::map<uint64_t, OpCounts> counts_;  // by key of Backend::replay()
  Backend::Stats stats_;
};

}  // namespace cuda

template <typename Device>
class RecordingBackend : public Backend {
 public:
  DType activation_type() const override { return DType::kBF16; }
  DType residual_type() const override { return DType::kF32; }
  DType attention_type() const override { return DType::kF16; }
  DType gemm_output_type() const override { return DType::kF32; }
  // Few rows are sent to the other GPUs as BF16, or by the megakernel as float32 (comm/peer_all_reduce.h). Of many rows
  // the bytes count. Between the two, latency counts most, and F32 saves a rounding of each rank's input.
  DType reduce_type(int64_t rows) const override {
    constexpr int64_t kPeerRows = 16, kExactRows = 512;
    return rows > kPeerRows && rows <= kExactRows ? DType::kF32 : DType::kBF16;
  }

  KvCache kv_alloc(const KvCacheConfig& config) override { return cuda::alloc_kv_cache(*this, config); }

  void linear(Tensor out, Tensor x, const Matrix& w) override {
    const cuda::DeviceMatrix& matrix = cuda::device_matrix(w);
    const auto own_kernel = [=, this](cudaStream_t on) { device().run_linear(out, x, matrix, on); };
    if (!recorder_->linear(out, x, matrix, false, own_kernel)) own_kernel(stream());
  }

  void linear_geglu(Tensor out, Tensor x, const Matrix& gate_up, Tensor scratch) override {
    const cuda::DeviceMatrix& matrix = cuda::device_matrix(gate_up);
    const auto own_kernel = [=, this](cudaStream_t on) { device().run_linear_geglu(out, x, matrix, scratch, on); };
    if (!recorder_->linear(out, x, matrix, true, own_kernel)) own_kernel(stream());
  }

  void qk_norm_rope_cache(Tensor query, Tensor q, Tensor k, Tensor v, Tensor scratch, const QkNorms& norms, Tensor pos,
                          const Rope& rope_by, const KvCache& kv, const Rows& rows) override {
    if (!cuda::qk_norm_rope_cache_fits(query, q, k, v)) {
      return Backend::qk_norm_rope_cache(query, q, k, v, scratch, norms, pos, rope_by, kv, rows);
    }
    const cuda::KvCacheView at = cuda::kv_cache_view(kv);
    const Tensor on_device = rows.device;
    const auto own_kernel = [=, this](cudaStream_t on) {
      device().run_qk_norm_rope_cache(query, q, k, v, norms, pos, rope_by, at, on_device, on);
    };
    if (!recorder_->qk_norm_rope_cache(query, q, k, v, norms, pos, rope_by, at, on_device, own_kernel)) {
      own_kernel(stream());
    }
  }

  void attention(Tensor out, Tensor q, const KvCache& kv, const Rows& rows) override {
    const cuda::KvCacheView at = cuda::kv_cache_view(kv);
    const Rows seen = {rows.device, device().capturing() ? std::span<const Row>() : rows.host};
    const auto own_kernel = [=, this](cudaStream_t on) { device().run_attention(out, q, at, seen, on); };
    if (!recorder_->attention(out, q, at, seen.device, own_kernel)) own_kernel(stream());
  }

  void add_rms_norm(Tensor out, Tensor x, Tensor y, Tensor post, float scale, Tensor next, float eps) override {
    const auto own_kernel = [=, this](cudaStream_t on) {
      device().run_add_rms_norm(out, x, y, post, scale, next, eps, on);
    };
    if (!recorder_->add_rms_norm(out, x, y, post, scale, next, eps, own_kernel)) own_kernel(stream());
  }

  void all_reduce(Tensor x) override {
    const auto own_kernel = [=, this](cudaStream_t on) { device().run_all_reduce(x, on); };
    if (!recorder_->all_reduce(x, own_kernel)) own_kernel(stream());
  }

  Stats stats() const override { return counter_.stats(); }

 protected:
  // Before the first op. `launch` is for tests (OpRecorder).
  void make_recorder(const cuda::MegakernelWorkspace& workspace, cuda::OpRecorder::Launch launch = nullptr) {
    recorder_ = std::make_unique<cuda::OpRecorder>(workspace, std::move(launch));
  }
  // The stream to put work on, behind everything that the recorder holds.
  cudaStream_t stream() {
    if (recorder_ && recorder_->open()) recorder_->flush(device().capturing(), device().device_stream());
    return device().device_stream();
  }

  // Calls `issue` with the recorder open, and remembers under `key` how many of its ops run in the megakernel.
  void record_step(uint64_t key, const std::function<void()>& issue) {
    recorder_->begin();
    try {
      issue();
    } catch (...) {
      recorder_->discard();
      throw;
    }
    recorder_->end(device().capturing(), device().device_stream());
    counter_.recorded(key, recorder_->counts());
  }
  void count_step(uint64_t key) { counter_.ran(key); }

 private:
  Device& device() { return static_cast<Device&>(*this); }

  std::unique_ptr<cuda::OpRecorder> recorder_;
  cuda::StepCounter counter_;
};

}  // namespace gemma4
