// A decode step as one launch against the same verbs one by one, over both kinds of layer, at 31B's shapes and others.
#include <algorithm>
#include <numeric>

#include "backend/cuda/test_pair.h"
#include "model/layer.h"

namespace gemma4 {
namespace {

struct Sizes {
  int64_t hidden, inner;
  int64_t heads, kv_heads[2];  // of sliding and full layers
};

constexpr int kDim[2] = {256, 512}, kPage = 64, kWindow = 1024;

// A sliding and a full layer with random int4 weights, two caches of each, and the residual stream.
class CudaStep : public CudaTest {
 protected:
  Matrix linear(int64_t rows, int64_t cols, int parts) {
    const int64_t each = rows / parts, groups = cols / 32;
    std::vector<Matrix> views;
    std::vector<std::vector<uint64_t>> codes;
    std::vector<std::vector<uint16_t>> scales, zeros;
    for (int part = 0; part < parts; ++part) {
      auto& c = codes.emplace_back(static_cast<size_t>(each * cols / 16));
      for (uint64_t& word : c) word = uint64_t{random_()} << 32 | random_();
      auto& s = scales.emplace_back(static_cast<size_t>(groups * each));
      auto& z = zeros.emplace_back(s.size());
      const float unit = 0.25f / std::sqrt(static_cast<float>(cols));
      for (uint16_t& scale : s) scale = float_to_bf16(unit * (0.5f + static_cast<float>(random_() % 1024) / 1024));
      for (uint16_t& zero : z) zero = float_to_bf16(static_cast<float>(6 + random_() % 4));
      Matrix m;
      m.format = Format::kInt4, m.rows = each, m.cols = cols, m.group = 32;
      m.codes = Tensor(c.data(), DType::kU8, {each, cols / 2});
      m.scale = Tensor(s.data(), DType::kBF16, {groups, each}), m.zero = Tensor(z.data(), DType::kBF16, {groups, each});
      views.push_back(m);
    }
    return gpu().upload(views);
  }
  Fused fused(int64_t rows, int64_t cols, int parts) { return {{{linear(rows, cols, parts), 0}}, rows}; }
  Tensor weight(int64_t size) {
    std::vector<float> values = normal(size, 0.1f);
    for (float& value : values) value += 1;
    return put(gpu(), DType::kF32, {size}, values);
  }
  void fill(Tensor cache) {  // what earlier steps might have written
    if (!cache) return;
    std::vector<uint16_t> bits(static_cast<size_t>(cache.size()));
    for (uint16_t& x : bits)
      x = static_cast<uint16_t>((random_() & 1) << 15 | (cache.dtype == DType::kF16 ? 0x3800 : 0x3f00) |
                                (random_() & 0x7f));
    gpu().write(cache, bits.data());
  }

  struct Cache {
    Kv kv;
    Tensor pages;
  };

  void make(const Sizes& sizes, int tokens) {
    sizes_ = sizes;
    const int64_t hidden = sizes.hidden;
    const int pages = (tokens + kPage - 1) / kPage + 1;
    std::vector<int32_t> order(static_cast<size_t>(pages));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    for (int kind = 0; kind < 2; ++kind) {
      const int64_t q = sizes.heads * kDim[kind], kv = sizes.kv_heads[kind] * kDim[kind];
      LayerWeights& w = layers_[kind];
      w.qkv = fused(q + kv * (kind ? 1 : 2), hidden, 1);
      w.o = linear(hidden, q, 1);
      w.gate_up = fused(2 * sizes.inner, hidden, 2);
      w.down = linear(hidden, sizes.inner, 1);
      for (Tensor* t : {&w.input_norm, &w.post_attention_norm, &w.pre_feedforward_norm, &w.post_feedforward_norm}) {
        *t = weight(hidden);
      }
      w.q_norm = weight(kDim[kind]), w.k_norm = weight(kDim[kind]);
      w.scalar = 0.7f;
      const int64_t half = kDim[kind] / 2, turning = kind ? 64 : half;
      std::vector<float> inv(static_cast<size_t>(half), 0.0f);
      for (int64_t i = 0; i < turning; ++i) inv[static_cast<size_t>(i)] = std::pow(1e4f, -2.0f * i / kDim[kind]);
      rope_[kind] = {put(gpu(), DType::kF32, {half}, inv), kDim[kind]};
      for (Cache& cache : caches_[kind]) {
        cache.kv = gpu().kv_alloc(
            {int64_t{pages} * kPage, kPage, static_cast<int>(sizes.kv_heads[kind]), kDim[kind], kind ? 64 : 0});
        cache.pages = gpu().alloc(DType::kI32, {1, pages});
        gpu().write(cache.pages, order.data());
        cache.kv.pages = cache.pages;
        if (kind) cache.kv.k_norm = w.k_norm;
        const auto seed = random_;
        fill(cache.kv.k), fill(cache.kv.v);
        if (&cache == &caches_[kind][0]) random_ = seed;  // both are the same
      }
    }
    const DType act = gpu().activation_type();
    int64_t q_max = sizes.heads * 512, qkv_max = layers_[1].qkv.rows;
    qkv_max = std::max(qkv_max, layers_[0].qkv.rows);
    for (Activations& a : a_) {
      a.x = gpu().alloc(gpu().residual_type(), {1, hidden});
      a.h = gpu().alloc(act, {1, hidden}), a.y = gpu().alloc(act, {1, hidden});
      a.qkv = gpu().alloc(act, {1, qkv_max}), a.values = gpu().alloc(act, {1, 512 * sizes.kv_heads[0]});
      a.o = gpu().alloc(act, {1, q_max});
      a.gate_up = gpu().alloc(act, {1, 2 * sizes.inner}), a.act = gpu().alloc(act, {1, sizes.inner});
    }
    rows_ = gpu().alloc(DType::kI32, {2, 4}), pos_ = gpu().alloc(DType::kI32, {1, 1});
  }

  // Both layers twice; `which` cache and activations.
  void issue(int which) {
    const Activations& a = a_[which];
    gpu().norm(a.h, a.x, layers_[0].input_norm, 1e-6f);
    for (int i = 0; i < 4; ++i) {
      const int kind = i % 2;
      const Rows rows{rows_.slice(kind, 1), std::span(host_ + kind, 1)};
      const LayerShape shape{sizes_.heads, sizes_.kv_heads[kind], kDim[kind], kind == 0};
      run_layer(gpu(), a, layers_[kind], {shape, pos_, &rope_[kind], &caches_[kind][which].kv, &rows, 1e-6f},
                i == 3 ? Tensor() : layers_[1 - kind].input_norm);
    }
  }

  void expect_equal(int pos, uint64_t key) {
    host_[0] = {0, pos, std::max(0, pos - kWindow + 1), pos}, host_[1] = {0, pos, 0, pos};
    gpu().write(rows_, host_), gpu().write(pos_, &pos);
    const std::vector<float> x = normal(sizes_.hidden, 1);
    for (const Activations& a : a_) gpu().write(a.x, x.data());
    gpu().replay(key, [&] { issue(0); });
    const std::vector<float> got = get(gpu(), a_[0].x);
    issue(1);
    const std::vector<float> wanted = get(gpu(), a_[1].x);
    EXPECT_LT(distance(got, wanted), 6e-3) << "position " << pos;
    EXPECT_GT(distance(wanted, x), 0.1) << "the layers did nothing";
  }

  Sizes sizes_;
  LayerWeights layers_[2];
  Rope rope_[2];
  Cache caches_[2][2];
  Activations a_[2];
  Tensor rows_, pos_;
  Row host_[2];
};

TEST_F(CudaStep, EqualsTheVerbsAt31B) {
  make({5376, 21504, 32, {16, 4}}, 20000);
  // Three rounds of a key: as it is, captured, replayed. Then every edge of a tile, a page, a share and the window.
  for (const int pos :
       {0, 1, 2, 15, 16, 17, 62, 63, 64, 127, 128, 129, 700, 1022, 1023, 1024, 1025, 1500, 1501, 4095, 19999}) {
    expect_equal(pos, 77);
  }
}

TEST_F(CudaStep, EqualsTheVerbsAtOtherShapes) {
  uint64_t key = 78;
  for (const Sizes& sizes :
       {Sizes{1024, 2048, 8, {4, 1}}, Sizes{640, 1280, 4, {4, 2}}, Sizes{1920, 6912, 16, {2, 2}}}) {
    make(sizes, 3000);
    for (const int pos : {0, 5, 130, 131, 132, 2999}) expect_equal(pos, key);
    ++key;
  }
}

}  // namespace
}  // namespace gemma4
