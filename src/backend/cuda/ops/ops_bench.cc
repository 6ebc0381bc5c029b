// The time of the ops around linear layers and attention at 31B's shapes on the GPU, and of the vision tower's linear
// layers: bytes per second (read plus written) or FLOP per second. A replayed graph has sixteen calls.
#include <benchmark/benchmark.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/runtime/bench_gpu.h"

namespace gemma4 {
namespace {

constexpr DType kBf16 = DType::kBF16, kF32 = DType::kF32, kI32 = DType::kI32;

// Tensors that are released at the end.
class Pool {
 public:
  ~Pool() {
    for (const Tensor& t : tensors_) gpu()->release(t);
  }
  Tensor zeros(DType type, std::initializer_list<int64_t> shape) {
    tensors_.push_back(gpu()->alloc(type, shape));
    return tensors_.back();
  }
  Tensor noise(DType type, std::initializer_list<int64_t> shape) {  // of about +-0.5
    const Tensor t = zeros(type, shape);
    std::vector<uint16_t> bits(static_cast<size_t>(t.bytes()) / 2);
    uint32_t seed = 1;
    for (uint16_t& x : bits) {
      seed = seed * 1664525u + 1013904223u;
      x = static_cast<uint16_t>(0x3e80u | (seed >> 16 & 0x80ffu));
    }
    gpu()->write(t, bits.data());
    return t;
  }
  void keep(Tensor t) {
    if (t) tensors_.push_back(t);
  }

 private:
  std::vector<Tensor> tensors_;
};

void measure(benchmark::State& state, const std::function<void()>& call, double bytes, double flops = 0) {
  constexpr int kCalls = 16;
  static uint64_t key = 1 << 20;
  ++key;
  const auto issue = [&] {
    for (int i = 0; i < kCalls; ++i) call();
  };
  for (int i = 0; i < 3; ++i) gpu()->replay(key, issue);
  gpu()->sync();
  for (auto _ : state) {
    gpu()->replay(key, issue);
    gpu()->sync();
  }
  const double calls = static_cast<double>(state.iterations()) * kCalls;
  state.counters["us"] = benchmark::Counter(calls / 1e6, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  if (bytes > 0) state.counters["GB/s"] = benchmark::Counter(calls * bytes / 1e9, benchmark::Counter::kIsRate);
  if (flops > 0) state.counters["TFLOP/s"] = benchmark::Counter(calls * flops / 1e12, benchmark::Counter::kIsRate);
}

struct Heads {
  int q, kv, dim, axes, rotated;  // `rotated` > 0: a compressed cache, without v
};

void qk_norm_rope_cache(benchmark::State& state, Heads h, int rows) {
  if (!gpu()) return state.SkipWithError("NOT MEASURED: there is no GPU");
  Pool pool;
  const int parts = h.rotated ? 1 : 2, page = h.axes == 2 ? 1 : 64;
  const int64_t width = (h.q + parts * h.kv) * h.dim, kv_width = h.kv * h.dim;
  const DType product = h.axes == 2 ? kBf16 : kF32;  // as the model has them
  const Tensor qkv = pool.noise(product, {rows, width}), norm = pool.noise(kF32, {h.dim}),
               freq = pool.noise(kF32, {1, h.dim / h.axes / 2}), pos = pool.zeros(kI32, {rows, h.axes}),
               device = pool.zeros(kI32, {rows, 4});
  KvCache kv = gpu()->kv_alloc({(rows + 63) / 64 * 64, page, h.kv, h.dim, h.rotated});
  pool.keep(kv.k), pool.keep(kv.v);
  kv.k_norm = norm;
  if (page > 1) {
    std::vector<int32_t> order(static_cast<size_t>((rows + 63) / 64));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    kv.pages = pool.zeros(kI32, {1, static_cast<int64_t>(order.size())});
    gpu()->write(kv.pages, order.data());
  }
  std::vector<Row> list;
  std::vector<int32_t> at;
  for (int i = 0; i < rows; ++i) {
    list.push_back({0, i, 0, i});
    for (int axis = 0; axis < h.axes; ++axis) at.push_back(i);
  }
  gpu()->write(device, list.data());
  gpu()->write(pos, at.data());
  const Tensor q = qkv.columns(0, h.q * h.dim).split(h.q, h.dim),
               k = qkv.columns(h.q * h.dim, kv_width).split(h.kv, h.dim),
               v = parts == 2 ? qkv.columns(h.q * h.dim + kv_width, kv_width).split(h.kv, h.dim) : Tensor();
  const Tensor query = pool.zeros(DType::kF16, {rows, h.q * h.dim}).split(h.q, h.dim);
  const double written = parts == 2 ? 2.0 * kv_width : h.kv * (h.dim + 2.0 * h.rotated);
  measure(
      state,
      [&] {
        gpu()->qk_norm_rope_cache(query, q, k, v, Tensor(), {norm, norm, 1e-6f}, pos, {freq, h.dim / h.axes}, kv,
                                  {device, {list.data(), list.size()}});
      },
      1.0 * rows * (static_cast<double>(dtype_size(product)) * width + 2.0 * h.q * h.dim + 2.0 * written));
}

void geglu(benchmark::State& state, int rows, int cols) {
  if (!gpu()) return state.SkipWithError("NOT MEASURED: there is no GPU");
  Pool pool;
  const Tensor gate_up = pool.noise(kBf16, {rows, 2 * cols}), out = pool.zeros(kBf16, {rows, cols});
  measure(
      state, [&] { gpu()->geglu(out, gate_up); }, 6.0 * rows * cols);
}

void add_rms_norm(benchmark::State& state, int rows, int cols) {
  if (!gpu()) return state.SkipWithError("NOT MEASURED: there is no GPU");
  Pool pool;
  const Tensor x = pool.zeros(kF32, {rows, cols}), y = pool.noise(kBf16, {rows, cols}),
               out = pool.zeros(kBf16, {rows, cols}), weight = pool.noise(kF32, {cols});
  measure(
      state, [&] { gpu()->add_rms_norm(out, x, y, weight, 0.5f, weight, 1e-6f); }, 12.0 * rows * cols);
}

// A linear layer of the vision tower, whose weights are bf16; with GeGLU if `gated`.
void product(benchmark::State& state, int rows, int out_cols, int cols, bool gated) {
  if (!gpu()) return state.SkipWithError("NOT MEASURED: there is no GPU");
  Pool pool;
  std::vector<uint16_t> weights(static_cast<size_t>(out_cols) * static_cast<size_t>(cols));
  uint32_t seed = 1;
  for (uint16_t& x : weights) {
    seed = seed * 1664525u + 1013904223u;
    x = static_cast<uint16_t>(0x3c80u | (seed >> 16 & 0x80ffu));
  }
  Matrix m;
  m.format = Format::kBF16, m.rows = out_cols, m.cols = cols;
  m.codes = Tensor(weights.data(), kBf16, {out_cols, cols});
  const Matrix w = gpu()->upload(std::span(&m, 1));
  const Tensor x = pool.noise(kBf16, {rows, cols}), out = pool.zeros(kBf16, {rows, out_cols}),
               act = pool.zeros(kBf16, {rows, out_cols / 2});
  measure(
      state, [&] { gated ? gpu()->linear_geglu(act, x, w, out) : gpu()->linear(out, x, w); }, 0,
      2.0 * rows * out_cols * cols);
}

template <typename... Parameters, typename... Args>
void add(const std::string& name, void (*bench)(benchmark::State&, Parameters...), Args... args) {
  benchmark::RegisterBenchmark(name.c_str(), bench, Parameters(args)...)->MinTime(0.05)->UseRealTime();
}

void register_all() {
  for (const int rows : {1, 2048}) {
    add("heads/sliding/" + std::to_string(rows), qk_norm_rope_cache, Heads{32, 16, 256, 1, 0}, rows);
    add("heads/full/" + std::to_string(rows), qk_norm_rope_cache, Heads{32, 4, 512, 1, 64}, rows);
  }
  for (const int rows : {2520, 10080}) {
    const std::string of = std::to_string(rows);
    add("heads/vision/" + of, qk_norm_rope_cache, Heads{16, 16, 72, 2, 0}, rows);
    add("geglu/" + of, geglu, rows, 4304);
    add("add_rms_norm/" + of, add_rms_norm, rows, 1152);
    add("product/qkv/" + of, product, rows, 3456, 1152, false);
    add("product/o/" + of, product, rows, 1152, 1152, false);
    add("product/gate_up and geglu/" + of, product, rows, 8608, 1152, true);
    add("product/down/" + of, product, rows, 1152, 4304, false);
  }
}

const bool kRegistered = (register_all(), true);

}  // namespace
}  // namespace gemma4
