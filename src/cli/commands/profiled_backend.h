// ProfiledBackend: another backend with a stopwatch at every verb, for `gemma4 bench --profile`. It waits for the
// device around each verb, so that times add up to more than a run without it takes; shares are what it is for.
#pragma once

#include <chrono>
#include <map>
#include <string>

#include "backend/backend.h"

namespace gemma4 {

class ProfiledBackend final : public Backend {
 public:
  explicit ProfiledBackend(Backend& inner) : inner_(inner) {}

  struct Total {
    int64_t calls = 0;
    double seconds = 0;
  };
  // By verb and shape. Empty once taken.
  std::map<std::string, Total> take() { return std::exchange(totals_, {}); }

  const char* name() const override { return inner_.name(); }
  DType activation_type() const override { return inner_.activation_type(); }
  DType residual_type() const override { return inner_.residual_type(); }
  DType query_type() const override { return inner_.query_type(); }
  DType product_type() const override { return inner_.product_type(); }
  DType sum_type(int64_t rows) const override { return inner_.sum_type(rows); }
  DType input_type(const Matrix& w) const override { return inner_.input_type(w); }
  Tensor alloc(DType type, std::initializer_list<int64_t> shape) override { return inner_.alloc(type, shape); }
  void release(Tensor t) override { inner_.release(t); }
  Kv kv_alloc(const KvConfig& config) override { return inner_.kv_alloc(config); }
  void kv_release(const Kv& kv) override { inner_.kv_release(kv); }
  void kv_copy(const Kv& kv, int32_t from, int32_t to) override { inner_.kv_copy(kv, from, to); }
  Matrix upload(std::span<const Matrix> parts) override { return inner_.upload(parts); }
  std::string layout() const override { return inner_.layout(); }
  StoredMatrix save(const Matrix& uploaded) override { return inner_.save(uploaded); }
  Matrix adopt(const StoredMatrix& stored) override { return inner_.adopt(stored); }
  void write(Tensor dst, const void* src) override {
    timed("write", [&] { inner_.write(dst, src); });
  }
  void read(void* dst, Tensor src) override {
    timed("read", [&] { inner_.read(dst, src); });
  }
  int64_t memory_used() const override { return inner_.memory_used(); }

  void embed(Tensor out, const Matrix& table, Tensor ids, float scale) override {
    timed("embed", [&] { inner_.embed(out, table, ids, scale); });
  }
  void linear(Tensor out, Tensor x, const Matrix& w) override {
    timed(shape("linear", w), [&] { inner_.linear(out, x, w); });
  }
  void norm(Tensor out, Tensor x, Tensor weight, float eps) override {
    timed("norm", [&] { inner_.norm(out, x, weight, eps); });
  }
  void add(Tensor x, Tensor y, float scale) override {
    timed("add", [&] { inner_.add(x, y, scale); });
  }
  void geglu(Tensor out, Tensor gate_up) override {
    timed("geglu", [&] { inner_.geglu(out, gate_up); });
  }
  void rope(Tensor x, Tensor pos, const Rope& by) override {
    timed("rope", [&] { inner_.rope(x, pos, by); });
  }
  void kv_write(const Kv& kv, Tensor k, Tensor v, const Rows& rows) override {
    timed("kv_write", [&] { inner_.kv_write(kv, k, v, rows); });
  }
  void attend(Tensor out, Tensor q, const Kv& kv, const Rows& rows) override {
    timed("attend " + std::to_string(q.shape[2]), [&] { inner_.attend(out, q, kv, rows); });
  }
  void gather(Tensor out, Tensor x, Tensor index) override {
    timed("gather", [&] { inner_.gather(out, x, index); });
  }
  void scatter(Tensor x, Tensor rows, Tensor index) override {
    timed("scatter", [&] { inner_.scatter(x, rows, index); });
  }
  void pool(Tensor out, Tensor x, Tensor group, float scale) override {
    timed("pool", [&] { inner_.pool(out, x, group, scale); });
  }
  void affine(Tensor x, Tensor bias, Tensor scale) override {
    timed("affine", [&] { inner_.affine(x, bias, scale); });
  }
  void softcap(Tensor x, float cap) override {
    timed("softcap", [&] { inner_.softcap(x, cap); });
  }
  void sample(Tensor ids, Tensor logits, std::span<const Sampling> sampling) override {
    timed("sample", [&] { inner_.sample(ids, logits, sampling); });
  }
  void residual_norm(Tensor out, Tensor x, Tensor y, Tensor post, float scale, Tensor next, float eps) override {
    timed("residual_norm", [&] { inner_.residual_norm(out, x, y, post, scale, next, eps); });
  }
  void linear_geglu(Tensor out, Tensor x, const Matrix& gate_up, Tensor scratch) override {
    timed(shape("linear_geglu", gate_up), [&] { inner_.linear_geglu(out, x, gate_up, scratch); });
  }
  void heads(Tensor query, Tensor q, Tensor k, Tensor v, Tensor scratch, const HeadNorms& norms, Tensor pos,
             const Rope& rope_by, const Kv& kv, const Rows& rows) override {
    timed("heads", [&] { inner_.heads(query, q, k, v, scratch, norms, pos, rope_by, kv, rows); });
  }
  int rank() const override { return inner_.rank(); }
  int world() const override { return inner_.world(); }
  void all_reduce(Tensor x) override {
    timed("all_reduce", [&] { inner_.all_reduce(x); });
  }
  void broadcast(Tensor x) override {
    timed("broadcast", [&] { inner_.broadcast(x); });
  }
  void gather_columns(Tensor x, std::span<const int64_t> begins) override {
    timed("gather_columns", [&] { inner_.gather_columns(x, begins); });
  }
  void leave(const std::string& why) override { inner_.leave(why); }
  void sync() override { inner_.sync(); }  // replay(): the default, which records nothing

 private:
  static std::string shape(const char* verb, const Matrix& w) {
    return std::string(verb) + " " + std::to_string(w.rows) + "x" + std::to_string(w.cols);
  }

  template <typename Work>
  void timed(const std::string& what, const Work& work) {
    inner_.sync();
    const auto start = std::chrono::steady_clock::now();
    work();
    inner_.sync();
    Total& total = totals_[what];
    total.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ++total.calls;
  }

  Backend& inner_;
  std::map<std::string, Total> totals_;
};

}  // namespace gemma4
