// ForwardingBackend: a backend that forwards every call to another one. Classes that watch or time a backend derive
// from it and override only the ops they watch. The optional observer is called around every op; it must call `run`
// exactly once.
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "backend/backend.h"
#include "base/function_ref.h"

namespace gemma4 {

class ForwardingBackend : public Backend {
 public:
  // `op`: its name and, for linear() and attention(), its shape: "linear 5376x21504" (rows x columns of the matrix).
  using Observer = std::function<void(const std::string& op, FunctionRef<void()> run)>;

  explicit ForwardingBackend(Backend& inner, Observer observer = nullptr)
      : inner_(inner), observer_(std::move(observer)) {}

  const char* name() const override { return inner_.name(); }
  DType activation_type() const override { return inner_.activation_type(); }
  DType residual_type() const override { return inner_.residual_type(); }
  DType attention_type() const override { return inner_.attention_type(); }
  DType gemm_output_type() const override { return inner_.gemm_output_type(); }
  DType gemm_input_type(const Matrix& w) const override { return inner_.gemm_input_type(w); }
  DType reduce_type(int64_t rows) const override { return inner_.reduce_type(rows); }

  Tensor alloc(DType type, std::initializer_list<int64_t> shape) override { return inner_.alloc(type, shape); }
  void release(Tensor t) override { inner_.release(t); }
  KvCache kv_alloc(const KvCacheConfig& config) override { return inner_.kv_alloc(config); }
  void kv_release(const KvCache& kv) override { inner_.kv_release(kv); }
  void kv_copy(const KvCache& kv, int32_t from, int32_t to) override { inner_.kv_copy(kv, from, to); }
  Matrix upload(std::span<const Matrix> matrices) override { return inner_.upload(matrices); }
  std::string layout() const override { return inner_.layout(); }
  PrepackedWeight serialize(const Matrix& uploaded) override { return inner_.serialize(uploaded); }
  Matrix load_prepacked(const PrepackedWeight& weight) override { return inner_.load_prepacked(weight); }
  int64_t memory_used() const override { return inner_.memory_used(); }
  MemoryLeft memory_left() const override { return inner_.memory_left(); }
  std::string device() const override { return inner_.device(); }
  void allow_bf16(bool allowed) override { inner_.allow_bf16(allowed); }
  bool rounds_to_bf16() const override { return inner_.rounds_to_bf16(); }
  Stats stats() const override { return inner_.stats(); }

  void write(Tensor dst, const void* src) override {
    around("write", [&] { inner_.write(dst, src); });
  }
  void read(void* dst, Tensor src) override {
    around("read", [&] { inner_.read(dst, src); });
  }
  void embed(Tensor out, const Matrix& table, Tensor ids, float scale) override {
    around("embed", [&] { inner_.embed(out, table, ids, scale); });
  }
  void linear(Tensor out, Tensor x, const Matrix& w) override {
    around(shape("linear", w), [&] { inner_.linear(out, x, w); });
  }
  void rms_norm(Tensor out, Tensor x, Tensor weight, float eps) override {
    around("rms_norm", [&] { inner_.rms_norm(out, x, weight, eps); });
  }
  void add(Tensor x, Tensor y, float scale) override {
    around("add", [&] { inner_.add(x, y, scale); });
  }
  void geglu(Tensor out, Tensor gate_up) override {
    around("geglu", [&] { inner_.geglu(out, gate_up); });
  }
  void rope(Tensor x, Tensor pos, const Rope& by) override {
    around("rope", [&] { inner_.rope(x, pos, by); });
  }
  void kv_write(const KvCache& kv, Tensor k, Tensor v, const Rows& rows) override {
    around("kv_write", [&] { inner_.kv_write(kv, k, v, rows); });
  }
  void attention(Tensor out, Tensor q, const KvCache& kv, const Rows& rows) override {
    around("attention " + std::to_string(q.shape[2]), [&] { inner_.attention(out, q, kv, rows); });
  }
  void convert(Tensor out, Tensor x) override {
    around("convert", [&] { inner_.convert(out, x); });
  }
  void gather(Tensor out, Tensor x, Tensor index) override {
    around("gather", [&] { inner_.gather(out, x, index); });
  }
  void scatter(Tensor x, Tensor rows, Tensor index) override {
    around("scatter", [&] { inner_.scatter(x, rows, index); });
  }
  void pool(Tensor out, Tensor x, Tensor group, float scale) override {
    around("pool", [&] { inner_.pool(out, x, group, scale); });
  }
  void affine(Tensor x, Tensor bias, Tensor scale) override {
    around("affine", [&] { inner_.affine(x, bias, scale); });
  }
  void softcap(Tensor x, float cap) override {
    around("softcap", [&] { inner_.softcap(x, cap); });
  }
  void sample(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling) override {
    around("sample", [&] { inner_.sample(ids, logits, sampling); });
  }
  void add_rms_norm(Tensor out, Tensor x, Tensor y, Tensor post, float scale, Tensor next, float eps) override {
    around("add_rms_norm", [&] { inner_.add_rms_norm(out, x, y, post, scale, next, eps); });
  }
  void linear_geglu(Tensor out, Tensor x, const Matrix& gate_up, Tensor scratch) override {
    around(shape("linear_geglu", gate_up), [&] { inner_.linear_geglu(out, x, gate_up, scratch); });
  }
  void qk_norm_rope_cache(Tensor query, Tensor q, Tensor k, Tensor v, Tensor scratch, const QkNorms& norms, Tensor pos,
                          const Rope& rope_by, const KvCache& kv, const Rows& rows) override {
    around("qk_norm_rope_cache",
           [&] { inner_.qk_norm_rope_cache(query, q, k, v, scratch, norms, pos, rope_by, kv, rows); });
  }

  int rank() const override { return inner_.rank(); }
  int world() const override { return inner_.world(); }
  void all_reduce(Tensor x) override {
    around("all_reduce", [&] { inner_.all_reduce(x); });
  }
  void broadcast(Tensor x) override {
    around("broadcast", [&] { inner_.broadcast(x); });
  }
  void gather_columns(Tensor x, std::span<const int64_t> begins) override {
    around("gather_columns", [&] { inner_.gather_columns(x, begins); });
  }
  void abort(const std::string& why) override { inner_.abort(why); }
  void replay(uint64_t key, const std::function<void()>& issue) override { inner_.replay(key, issue); }
  void sync() override { inner_.sync(); }

 protected:
  Backend& inner() { return inner_; }

 private:
  static std::string shape(const char* op, const Matrix& w) {
    return std::string(op) + " " + std::to_string(w.rows) + "x" + std::to_string(w.cols);
  }
  template <typename Op, typename Run>
  void around(Op&& op, const Run& run) {
    observer_ ? observer_(op, run) : run();
  }

  Backend& inner_;
  Observer observer_;
};

}  // namespace gemma4
