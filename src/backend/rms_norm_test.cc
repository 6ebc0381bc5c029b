// rms_norm, the elementwise ops, rope, gather and scatter, and the fused ops, against ref.
#include <cmath>
#include <functional>

#include "backend/op_testing.h"

namespace gemma4 {
namespace {

class ElementwiseTest : public OpTest {
 protected:
  // Largest error of what `body` returns, on the backend under test and on ref.
  void expect_equal(double limit, const std::function<Floats(Backend&)>& body, const std::string& what = "") {
    EXPECT_LE(relative_error(body(*be), body(*ref)), tolerance(*be, limit)) << what;
  }
};

constexpr int64_t kWidths[] = {1, 3, 12, 16, 48, 72, 96, 100, 255, 1152, 5376};

// One rounding of the sum and one of each product: a few 2^-24.
TEST_P(ElementwiseTest, RmsNorm) {
  for (const int64_t width : kWidths) {
    for (const int64_t rows : {1, 9}) {
      for (const bool weighted : {false, true}) {
        expect_equal(
            1e-6,
            [&](Backend& b) {
              Random random(1);
              const Tensor x = put(b, random.values(rows * width, -4, 4), {rows, width});
              const Tensor weight =
                  weighted ? put_as(b, DType::kF32, random.values(width, 0, 3), {1, width}) : Tensor();
              const Tensor out = b.alloc(b.activation_type(), {rows, width});
              b.rms_norm(out, x, weight, 1e-6f);
              return get(b, out);
            },
            std::to_string(width));
      }
    }
  }
}

// Over the last dimension of [rows, heads, dim], in place, inside a wider buffer.
TEST_P(ElementwiseTest, RmsNormOfHeadsInPlaceInAView) {
  for (const int64_t dim : {12, 72, 256, 512}) {
    expect_equal(1e-6, [&](Backend& b) {
      Random random(2);
      const Tensor wide = put(b, random.values(5 * 6 * dim), {5, 6 * dim});
      const Tensor x = wide.columns(dim, 4 * dim).split(4, dim);
      b.rms_norm(x, x, put_as(b, DType::kF32, random.values(dim, 0, 2), {1, dim}), 1e-6f);
      return get(b, wide);
    });
  }
}

TEST_P(ElementwiseTest, TinyAndHugeValues) {
  for (const float size : {1e-6f, 1e-3f, 1e4f}) {
    expect_equal(1e-6, [&](Backend& b) {
      const Tensor x = put(b, Random(3).values(2 * 96, -size, size), {2, 96});
      b.rms_norm(x, x, Tensor(), 1e-6f);
      return get(b, x);
    });
  }
}

TEST_P(ElementwiseTest, Add) {
  for (const int64_t width : kWidths) {
    expect_equal(3e-7, [&](Backend& b) {
      Random random(4);
      const Tensor x = put_as(b, b.residual_type(), random.values(3 * width), {3, width});
      b.add(x, put(b, random.values(3 * width), {3, width}), 0.0045f);
      return get(b, x);
    });
  }
}

// exp to 2 ulp and a quotient; compared element by element near the gate's zero, where the output is small.
TEST_P(ElementwiseTest, Geglu) {
  for (const int64_t n : {1, 5, 160, 4304, 21504}) {
    for (const float size : {1e-3f, 8.0f, 60.0f}) {
      expect_equal(1e-6, [&](Backend& b) {
        const Tensor x = put(b, Random(5).values(2 * 2 * n, -size, size), {2, 2 * n});
        const Tensor out = b.alloc(b.activation_type(), {2, n});
        b.geglu(out, x);
        return get(b, out);
      });
    }
  }
}

TEST_P(ElementwiseTest, GegluOfExtremeGates) {
  Floats gates = {-1e30f, -3e4f, -100, -13, -5, -1e-20f, 0, 1e-20f, 5, 13, 100, 3e4f};
  const auto n = static_cast<int64_t>(gates.size());
  const Floats values = [&] {
    Floats both = rounded(gates);
    both.insert(both.end(), gates.size(), 1.0f);
    return both;
  }();
  const auto body = [&](Backend& b) {
    const Tensor out = b.alloc(b.activation_type(), {1, n});
    b.geglu(out, put(b, values, {1, 2 * n}));
    return get(b, out);
  };
  const Floats got = body(*be), want = body(*ref);
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], tolerance(*be, 1e-6) * std::max(std::abs(want[i]), 1e-2f)) << values[i];
  }
}

TEST_P(ElementwiseTest, Softcap) {
  for (const float size : {0.01f, 20.0f, 2000.0f}) {
    expect_equal(1e-6, [&](Backend& b) {
      const Tensor x = put_as(b, DType::kF32, Random(6).values(2 * 2045, -size, size), {2, 2045});
      b.softcap(x, 30);
      return get(b, x);
    });
  }
}

TEST_P(ElementwiseTest, Affine) {
  for (const int64_t width : kWidths) {
    expect_equal(3e-7, [&](Backend& b) {
      Random random(7);
      const Tensor x = put_as(b, b.residual_type(), random.values(4 * width), {4, width});
      const Tensor bias = put_as(b, DType::kF32, random.values(width), {1, width});
      b.affine(x, bias, put_as(b, DType::kF32, random.values(width, 0, 9), {1, width}));
      return get(b, x);
    });
  }
}

TEST_P(ElementwiseTest, Pool) {
  for (const int64_t width : {48, 1152}) {
    expect_equal(1e-6, [&](Backend& b) {
      Random random(8);
      const Tensor x = put_as(b, b.residual_type(), random.values(36 * width), {36, width});
      std::vector<int32_t> group(36);
      for (size_t i = 0; i < 36; ++i) group[i] = static_cast<int32_t>(i % 6 / 3 + 2 * (i / 18));
      const Tensor out = put_as(b, b.residual_type(), Floats(static_cast<size_t>(4 * width), 7.0f), {4, width});
      b.pool(out, x, put_ints(b, group, {36, 1}), 33.94f / 9);
      return get(b, out);
    });
  }
}

TEST_P(ElementwiseTest, GatherAndScatter) {
  Floats results[2];
  for (int i = 0; i < 2; ++i) {
    Backend& b = i == 0 ? *be : *ref;
    Random random(9);
    const Tensor x = put_as(b, b.residual_type(), random.values(7 * 50), {7, 50});
    const Tensor some = b.alloc(b.residual_type(), {4, 50});
    b.gather(some, x, put_ints(b, {6, 0, 3, 3}, {4, 1}));
    b.scatter(x, some.slice(0, 3), put_ints(b, {1, 2, 5}, {3, 1}));
    results[i] = get(b, x);
    const Floats gathered = get(b, some);
    results[i].insert(results[i].end(), gathered.begin(), gathered.end());
  }
  EXPECT_EQ(results[0], results[1]);
}

Rope make_rope(Backend& b, int block, int rotated, float theta) {
  Floats inv_freq(static_cast<size_t>(block / 2));
  for (int i = 0; i < rotated; ++i) {
    inv_freq[static_cast<size_t>(i)] = 1 / std::pow(theta, static_cast<float>(2 * i) / static_cast<float>(block));
  }
  return {put_as(b, DType::kF32, inv_freq, {1, block / 2}), block};
}

struct RopeCase {
  int heads, dim, block, rotated;
  float theta;
};
constexpr RopeCase kRopes[] = {{32, 256, 256, 128, 1e4f},
                               {4, 512, 512, 64, 1e6f},
                               {16, 72, 36, 18, 100},
                               {4, 12, 6, 3, 100},
                               {2, 16, 16, 8, 1e4f}};

std::vector<int32_t> positions(int64_t rows, int64_t axes) {
  std::vector<int32_t> pos;
  for (int64_t i = 0; i < rows * axes; ++i) pos.push_back(static_cast<int32_t>(i == 2 ? 200000 : i * 37 % 1000));
  return pos;
}

// The angle is the definition's float32 product; its sine and cosine are libm's, so only the last multiply-add differs.
TEST_P(ElementwiseTest, Rope) {
  for (const RopeCase& c : kRopes) {
    expect_equal(3e-7, [&](Backend& b) {
      const int64_t axes = c.dim / c.block;
      const Tensor x = put(b, Random(10).values(3 * c.heads * c.dim), {3, c.heads, c.dim});
      b.rope(x, put_ints(b, positions(3, axes), {3, axes}), make_rope(b, c.block, c.rotated, c.theta));
      return get(b, x);
    });
  }
}

TEST_P(ElementwiseTest, AddRmsNorm) {
  for (const int64_t width : {1, 96, 1152, 5376}) {
    for (const bool last : {false, true}) {
      expect_equal(2e-6, [&](Backend& b) {
        Random random(11);
        const Tensor x = put_as(b, b.residual_type(), random.values(3 * width), {3, width});
        const Tensor y = put(b, random.values(3 * width), {3, width});
        const Tensor post = put_as(b, DType::kF32, random.values(width, 0, 2), {1, width});
        const Tensor next = last ? Tensor() : put_as(b, DType::kF32, random.values(width, 0, 2), {1, width});
        const Tensor out = last ? Tensor() : b.alloc(b.activation_type(), {3, width});
        b.add_rms_norm(out, x, y, post, 0.7f, next, 1e-6f);
        Floats result = get(b, x);
        if (out) {
          const Floats normed = get(b, out);
          result.insert(result.end(), normed.begin(), normed.end());
        }
        return result;
      });
    }
  }
}

TEST_P(ElementwiseTest, LinearGeglu) {
  for (const int64_t n : {7, 32, 160, 200}) {
    for (const int64_t rows : {1, 3, 16, 21}) {
      expect_equal(1e-4, [&](Backend& b) {  // two products over 4-bit codes, each within 4e-5 (linear_test.cc)
        Random random(12);
        const HostMatrix gate = random_matrix(Format::kInt4, n, 192, 32, random);
        const HostMatrix up = random_matrix(Format::kInt4, n, 192, 32, random);
        const std::vector<Matrix> stacked = {gate.matrix, up.matrix};
        const Tensor x = put(b, random.values(rows * 192), {rows, 192});
        const Tensor out = b.alloc(b.activation_type(), {rows, n});
        b.linear_geglu(out, x, b.upload(stacked), b.alloc(b.activation_type(), {rows, 2 * n}));
        return get(b, out);
      });
    }
  }
}

// qk_norm_rope_cache with V, and without it (V is K, read before K's own norm), seen through attention.
TEST_P(ElementwiseTest, QkNormRopeCache) {
  for (const RopeCase& c : kRopes) {
    for (const bool has_v : {true, false}) {
      expect_equal(5e-6, [&](Backend& b) {
        const int64_t n = 5, axes = c.dim / c.block, q_width = int64_t{c.heads} * c.dim, width = q_width / 2;
        Random random(13);
        const Tensor qkv = put(b, random.values(n * (q_width + 2 * width)), {n, q_width + 2 * width});
        const Tensor q = qkv.columns(0, q_width).split(c.heads, c.dim);
        const Tensor k = qkv.columns(q_width, width).split(c.heads / 2, c.dim);
        const Tensor v = has_v ? qkv.columns(q_width + width, width).split(c.heads / 2, c.dim) : Tensor();
        const Tensor q_norm = put_as(b, DType::kF32, random.values(c.dim, 0, 0.3f), {1, c.dim});
        const Tensor k_norm = put_as(b, DType::kF32, random.values(c.dim, 0, 1), {1, c.dim});
        std::vector<Row> host;
        for (int32_t i = 0; i < n; ++i) host.push_back({0, i, 0, i});
        const Tensor device = b.alloc(DType::kI32, {n, 4});
        b.write(device, host.data());
        const Rows rows{device, host};
        KvCacheConfig config;
        config.slots = n, config.heads = c.heads / 2, config.dim = c.dim, config.rotated_pairs = has_v ? 0 : c.rotated;
        KvCache kv = b.kv_alloc(config);
        kv.k_norm = k_norm;
        b.qk_norm_rope_cache(q, q, k, v, b.alloc(b.activation_type(), {n, c.heads / 2, c.dim}), {q_norm, k_norm, 1e-6f},
                             put_ints(b, positions(n, axes), {n, axes}), make_rope(b, c.block, c.rotated, c.theta), kv,
                             rows);
        const Tensor out = b.alloc(b.activation_type(), {n, c.heads, c.dim});
        b.attention(out, q, kv, rows);
        return get(b, out);
      });
    }
  }
}

// The canary: an epsilon of the wrong size must be seen.
TEST_P(ElementwiseTest, SeesAWrongEpsilon) {
  const Floats values = Random(14).values(96, -0.01f, 0.01f);
  const auto body = [&](Backend& b, float eps) {
    const Tensor out = b.alloc(b.activation_type(), {1, 96});
    b.rms_norm(out, put(b, values, {1, 96}), Tensor(), eps);
    return get(b, out);
  };
  EXPECT_GT(relative_error(body(*be, 2e-6f), body(*ref, 1e-6f)), 1e-6);
}

GEMMA4_FOR_EACH_BACKEND(ElementwiseTest);

}  // namespace
}  // namespace gemma4
