// WatchedBackend: ref, with eyes: it counts allocations and fails where a test wants a device to fail.
#pragma once

#include <atomic>
#include <limits>
#include <memory>

#include "backend/backend.h"

namespace gemma4 {

struct Watch {
  std::atomic<int64_t> allocations{0};
  std::atomic<int64_t> samples{0};
  std::atomic<int64_t> linears{0};
  // These throw DeviceError from then on.
  std::atomic<int64_t> fail_at_sample{std::numeric_limits<int64_t>::max()};
  std::atomic<int64_t> fail_at_linear{std::numeric_limits<int64_t>::max()};
};

class WatchedBackend : public Backend {
 public:
  WatchedBackend(std::unique_ptr<Backend> inner, std::shared_ptr<Watch> watch)
      : inner_(std::move(inner)), watch_(std::move(watch)) {}

  const char* name() const override { return inner_->name(); }
  DType activation_type() const override { return inner_->activation_type(); }
  DType residual_type() const override { return inner_->residual_type(); }
  DType query_type() const override { return inner_->query_type(); }
  DType product_type() const override { return inner_->product_type(); }
  DType sum_type(int64_t rows) const override { return inner_->sum_type(rows); }
  DType input_type(const Matrix& w) const override { return inner_->input_type(w); }
  Tensor alloc(DType type, std::initializer_list<int64_t> shape) override {
    ++watch_->allocations;
    return inner_->alloc(type, shape);
  }
  void release(Tensor t) override { inner_->release(t); }
  Kv kv_alloc(const KvConfig& config) override { return inner_->kv_alloc(config); }
  void kv_release(const Kv& kv) override { inner_->kv_release(kv); }
  void kv_copy(const Kv& kv, int32_t from, int32_t to) override { inner_->kv_copy(kv, from, to); }
  Matrix upload(std::span<const Matrix> parts) override { return inner_->upload(parts); }
  std::string layout() const override { return inner_->layout(); }
  StoredMatrix save(const Matrix& uploaded) override { return inner_->save(uploaded); }
  Matrix adopt(const StoredMatrix& stored) override { return inner_->adopt(stored); }
  void write(Tensor dst, const void* src) override { inner_->write(dst, src); }
  void read(void* dst, Tensor src) override { inner_->read(dst, src); }
  int64_t memory_used() const override { return inner_->memory_used(); }
  void embed(Tensor out, const Matrix& table, Tensor ids, float scale) override {
    inner_->embed(out, table, ids, scale);
  }
  void linear(Tensor out, Tensor x, const Matrix& w) override {
    if (++watch_->linears >= watch_->fail_at_linear) throw DeviceError("the device lost its memory");
    inner_->linear(out, x, w);
  }
  void norm(Tensor out, Tensor x, Tensor weight, float eps) override { inner_->norm(out, x, weight, eps); }
  void add(Tensor x, Tensor y, float scale) override { inner_->add(x, y, scale); }
  void geglu(Tensor out, Tensor gate_up) override { inner_->geglu(out, gate_up); }
  void rope(Tensor x, Tensor pos, const Rope& rope) override { inner_->rope(x, pos, rope); }
  void kv_write(const Kv& kv, Tensor k, Tensor v, const Rows& rows) override { inner_->kv_write(kv, k, v, rows); }
  void attend(Tensor out, Tensor q, const Kv& kv, const Rows& rows) override { inner_->attend(out, q, kv, rows); }
  void gather(Tensor out, Tensor x, Tensor index) override { inner_->gather(out, x, index); }
  void scatter(Tensor x, Tensor rows, Tensor index) override { inner_->scatter(x, rows, index); }
  void pool(Tensor out, Tensor x, Tensor group, float scale) override { inner_->pool(out, x, group, scale); }
  void affine(Tensor x, Tensor bias, Tensor scale) override { inner_->affine(x, bias, scale); }
  void softcap(Tensor x, float cap) override { inner_->softcap(x, cap); }
  void sample(Tensor ids, Tensor logits, std::span<const Sampling> sampling) override {
    if (++watch_->samples >= watch_->fail_at_sample) throw DeviceError("the device fell off the bus");
    inner_->sample(ids, logits, sampling);
  }

 private:
  std::unique_ptr<Backend> inner_;
  std::shared_ptr<Watch> watch_;
};

}  // namespace gemma4
