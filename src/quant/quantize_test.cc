#include "quant/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "base/bf16.h"
#include "quant/pack.h"
#include "quant/rounding.h"

namespace gemma4 {
namespace {

using testing::HasSubstr;

struct Source {
  std::vector<uint16_t> bits;
  Matrix matrix;
};

template <typename Value>
Source make_source(int64_t rows, int64_t cols, Value value) {
  Source source;
  source.bits.resize(static_cast<size_t>(rows * cols));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col)
      source.bits[static_cast<size_t>(row * cols + col)] = float_to_bf16(value(row, col));
  }
  source.matrix.format = Format::kBF16;
  source.matrix.rows = rows;
  source.matrix.cols = cols;
  source.matrix.codes = Tensor(source.bits.data(), DType::kBF16, {rows, cols});
  return source;
}

// The weights of the golden vectors below (made with torchao 0.17), exact in bf16.
Source golden() {
  return make_source(2, 64, [](int64_t n, int64_t k) { return static_cast<float>((131 * n + 17 * k) % 97 - 48) / 64; });
}

Source gaussian(int64_t rows, int64_t cols, float sigma, unsigned seed = 42) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, sigma);
  return make_source(rows, cols, [&](int64_t, int64_t) { return normal(random); });
}

QuantizedWeight quantize(const Source& source, const QuantConfig& config, HqqArithmetic hqq = HqqArithmetic::kF32,
                         int threads = 2) {
  ThreadPool pool(threads);
  return quantize(source.matrix, config, hqq, pool, "w");
}

std::string hex(const void* data, size_t size) {
  std::string text;
  for (size_t i = 0; i < size; ++i) {
    char byte[3];
    std::snprintf(byte, sizeof byte, "%02x", static_cast<const uint8_t*>(data)[i]);
    text += byte;
  }
  return text;
}

std::string row_hex(const QuantizedWeight& q, int64_t row) {
  const size_t bytes = q.codes.size() / static_cast<size_t>(q.rows);
  return hex(q.codes.data() + static_cast<size_t>(row) * bytes, bytes);
}

using Bits = std::vector<uint16_t>;

TEST(QuantizeGolden, Int4AsymmetricMinMax) {
  const auto q = quantize(golden(), {4, 32, false, Method::kMinMax});
  EXPECT_EQ(q.scale, (Bits{0x3dcb, 0x3dc4, 0x3dcb, 0x3dcb}));
  EXPECT_EQ(q.zero, (Bits{0x4100, 0x40e0, 0x40e0, 0x40e0}));
  EXPECT_EQ(row_hex(q, 0), "3086eb4197fc52a7fd53b81e64c92e74b91e74ca2085da3086eb4197fc52a70d");
  EXPECT_EQ(row_hex(q, 1), "75da3086eb4196fc42a70d52b80e63c91e74ca2085da3086eb4197fc52a70d53");
}

TEST(QuantizeGolden, Int4SymmetricMinMax) {
  const auto q = quantize(golden(), {4, 32, true, Method::kMinMax});
  EXPECT_EQ(q.scale, (Bits{0x3dcd, 0x3dc9, 0x3dcd, 0x3dcd}));
  EXPECT_EQ(q.zero, Bits(4, 0x4100));
  EXPECT_EQ(row_hex(q, 0), "3086eb4197fc52a7fd63b81d64c92e74ca3f85da3196eb4197fc52a8fd63b81e");
  EXPECT_EQ(row_hex(q, 1), "86eb4197fc52a7fd53b81e64c92e74ca3f85da3196eb4197fc52a8fd63b81e64");
}

TEST(QuantizeGolden, Int8Symmetric) {
  const auto q = quantize(golden(), {8, 32, true, Method::kMinMax});
  EXPECT_EQ(q.scale, (Bits{0x3bc1, 0x3bc1, 0x3bbd, 0x3bc1}));
  EXPECT_EQ(q.zero8, std::vector<int8_t>(4, 0));
  EXPECT_EQ(
      row_hex(q, 0),
      "80aedb0835628ebbe81542709bc8f523507da8d603305d88b6e3103d6a96c3f01d4a78a3d0fd2a5883b0dd0b386590beeb1845729ec"
      "bf825527fabd80532608b");
  EXPECT_EQ(
      row_hex(q, 1),
      "da0836648cbae816447299c7f523517fa7d503315f86b4e2103e6c94c2f01e4c78a3d0fd2a5883b0dd0b386590beeb1845729ecbf825"
      "527fabd80532608bb8e5");
}

TEST(QuantizeGolden, Int8PerAxis) {
  const auto q = quantize(golden(), {8, 0, true, Method::kMinMax});
  EXPECT_EQ(q.group, 64);
  EXPECT_EQ(q.scale, (Bits{0x3bc1, 0x3bc1}));
  EXPECT_EQ(row_hex(q, 0), row_hex(quantize(golden(), {8, 32, true, Method::kMinMax}), 0));
  EXPECT_EQ(
      row_hex(q, 1),
      "db0835628ebbe81542709bc8f523507da8d603305d88b6e3103d6a96c3f01d4a78a3d0fd2a5883b0dd0b386590beeb1845729ecbf82"
      "5527fabd80532608bb8e5");
}

TEST(QuantizeGolden, Int4SymmetricHqq) {
  const auto q = quantize(golden(), {4, 32, true, Method::kHqq});
  EXPECT_EQ(q.scale, (Bits{0x3dbe, 0x3dbe, 0x3dc7, 0x3dc8}));
  EXPECT_EQ(q.zero, Bits(4, 0x4100));
  EXPECT_EQ(row_hex(q, 0), "3096eb4196fc42a7fd52b80e63c91f74da2f85db3096eb4197fc52a8fd63b81e");
  EXPECT_EQ(row_hex(q, 1), "96eb4196fc42a7fd52b80e63c91f74da2f85db3096eb4197fc52a8fd63b81e64");
}

TEST(QuantizeGolden, Int4AsymmetricHqqInBothArithmetics) {
  for (const auto arithmetic : {HqqArithmetic::kF32, HqqArithmetic::kF16}) {
    const auto q = quantize(golden(), {4, 32, false, Method::kHqq}, arithmetic);
    EXPECT_EQ(q.scale, (Bits{0x3dcb, 0x3dc4, 0x3dcb, 0x3dcb}));
    EXPECT_EQ(q.zero, (Bits{0x4100, 0x40e6, 0x40e0, 0x40e0}));
    EXPECT_EQ(row_hex(q, 0), "3086eb4197fc52a7fd53b81e64c92e74b91e74ca2085da3086eb4197fc52a70d");
    EXPECT_EQ(row_hex(q, 1), "85da3086eb4197fc52a70d53b81e63c91e74ca2085da3086eb4197fc52a70d53");
    if (arithmetic == HqqArithmetic::kF16) {
      EXPECT_EQ(q.hqq_iterations, 7);
    }
  }
}

TEST(QuantizeGolden, PositionTable) {
  const Source source = golden();
  Matrix table = source.matrix;
  table.rows = 4;
  table.cols = 32;
  table.codes = Tensor(table.codes.data, DType::kBF16, {4, 32});
  ThreadPool pool(1);
  const QuantizedTable q = quantize_position_table(table, pool, "table");
  uint32_t bits[4];
  std::memcpy(bits, q.scale.data(), sizeof bits);
  EXPECT_THAT(bits, testing::ElementsAre(0x3bc18306, 0x3bc18306, 0x3bbd7af6, 0x3bc18306));
  EXPECT_EQ(hex(q.codes.data(), 32), "81aedb0835628ebbe815426f9bc8f5224f7ca9d603305d89b6e3103d6a96c3f0");
}

double relative_error(const Source& source, QuantizedWeight& q) {
  const Matrix m = q.view();
  std::vector<float> a(static_cast<size_t>(q.cols)), b = a;
  double error = 0, size = 0;
  for (int64_t row = 0; row < q.rows; ++row) {
    unpack_row(source.matrix, row, a.data());
    unpack_row(m, row, b.data());
    for (size_t i = 0; i < a.size(); ++i) error += std::fabs(a[i] - b[i]), size += std::fabs(a[i]);
  }
  return error / size;
}

// Bounds of ExecuTorch's tests (quant/tests/test_quantize.py).
TEST(Quantize, RoundTripErrors) {
  struct Case {
    QuantConfig config;
    int64_t rows, cols;
    float sigma;
    double bound;
    Format format;
  };
  const Case cases[] = {
      {{4, 32, false, Method::kMinMax}, 64, 128, 1, 0.15, Format::kInt4},
      {{4, 32, true, Method::kMinMax}, 64, 128, 1, 0.15, Format::kInt4},
      {{4, 64, false, Method::kMinMax}, 64, 128, 1, 0.15, Format::kInt4},
      {{8, 32, true, Method::kMinMax}, 64, 128, 1, 0.02, Format::kInt8},
      {{8, 32, true, Method::kMinMax}, 64, 128, 0.01f, 0.02, Format::kInt8},
      {{8, 0, true, Method::kMinMax}, 256, 64, 1, 0.01, Format::kInt8},
      {{4, 32, false, Method::kHqq}, 64, 128, 1, 0.15, Format::kInt4},
      {{4, 32, true, Method::kHqq}, 64, 128, 1, 0.15, Format::kInt4},
      {{8, 32, true, Method::kHqq}, 64, 128, 1, 0.02, Format::kInt8},
  };
  for (const Case& c : cases) {
    const Source source = gaussian(c.rows, c.cols, c.sigma);
    auto q = quantize(source, c.config);
    EXPECT_EQ(q.format, c.format);
    EXPECT_EQ(q.rows, c.rows);
    EXPECT_EQ(q.cols, c.cols);
    const double error = relative_error(source, q);
    EXPECT_LT(error, c.bound) << "bits " << c.config.bits << " group " << c.config.group;
    EXPECT_GT(error, c.bound / 100);
  }
}

TEST(Quantize, Int8Asymmetric) {
  const Source source = gaussian(64, 128, 1);
  const auto q = quantize(source, {8, 32, false, Method::kMinMax});
  double error = 0, size = 0;
  std::vector<float> row(128);
  for (int64_t n = 0; n < 64; ++n) {
    unpack_row(source.matrix, n, row.data());
    for (int64_t k = 0; k < 128; ++k) {
      const auto group = static_cast<size_t>(n * 4 + k / 32);
      const auto code = static_cast<int8_t>(q.codes[static_cast<size_t>(n * 128 + k)]);
      const float value = static_cast<float>(code - q.zero8[group]) * bf16_to_float(q.scale[group]);
      error += std::fabs(value - row[static_cast<size_t>(k)]), size += std::fabs(row[static_cast<size_t>(k)]);
    }
  }
  EXPECT_LT(error / size, 0.02);
}

TEST(Quantize, HqqBeatsMinMaxOnGaussianWeights) {
  const Source source = gaussian(128, 512, 0.02f);
  auto plain = quantize(source, {4, 32, false, Method::kMinMax});
  auto f32 = quantize(source, {4, 32, false, Method::kHqq}, HqqArithmetic::kF32);
  auto f16 = quantize(source, {4, 32, false, Method::kHqq}, HqqArithmetic::kF16);
  const double bound = relative_error(source, plain);
  EXPECT_LT(relative_error(source, f32), 0.96 * bound);
  EXPECT_LT(relative_error(source, f16), 0.96 * bound);
  EXPECT_GT(f16.hqq_iterations, 1);
  EXPECT_LT(f16.hqq_iterations, 20);
}

TEST(Quantize, SameForAnyNumberOfThreads) {
  const Source source = gaussian(67, 96, 0.3f);
  for (const QuantConfig config : {QuantConfig{4, 32, false, Method::kMinMax}, QuantConfig{4, 32, false, Method::kHqq},
                                   QuantConfig{4, 32, true, Method::kHqq}, QuantConfig{8, 0, true, Method::kMinMax}}) {
    const auto one = quantize(source, config, HqqArithmetic::kF16, 1);
    const auto five = quantize(source, config, HqqArithmetic::kF16, 5);
    EXPECT_EQ(one.codes, five.codes);
    EXPECT_EQ(one.scale, five.scale);
    EXPECT_EQ(one.zero, five.zero);
  }
}

TEST(Quantize, EdgeValues) {
  // A group of zeros, a group of one value, huge ranges, tiny values: no NaN, and zero stays zero.
  const Source source = make_source(4, 32, [](int64_t row, int64_t col) {
    return row == 0 ? 0.0f : row == 1 ? 0.75f : row == 2 ? (col % 2 ? 6e4f : -6e4f) : 1e-30f * static_cast<float>(col);
  });
  for (const QuantConfig config :
       {QuantConfig{4, 32, false, Method::kMinMax}, QuantConfig{4, 32, true, Method::kMinMax},
        QuantConfig{8, 32, true, Method::kMinMax}, QuantConfig{4, 32, false, Method::kHqq},
        QuantConfig{4, 32, true, Method::kHqq}, QuantConfig{8, 32, true, Method::kHqq}}) {
    for (const auto arithmetic : {HqqArithmetic::kF32, HqqArithmetic::kF16}) {
      auto q = quantize(source, config, arithmetic);
      std::vector<float> row(32);
      unpack_row(q.view(), 0, row.data());
      for (float x : row) EXPECT_EQ(x, 0);
      for (int64_t r = 1; r < 4; ++r) {
        unpack_row(q.view(), r, row.data());
        for (float x : row) EXPECT_TRUE(std::isfinite(x));
      }
    }
  }
}

std::string message(const Source& source, const QuantConfig& config, HqqArithmetic hqq = HqqArithmetic::kF32) {
  try {
    quantize(source, config, hqq);
  } catch (const Error& error) {
    return error.what();
  }
  return "done";
}

TEST(Quantize, Refusals) {
  const Source source = gaussian(4, 96, 1);
  EXPECT_THAT(message(source, {3, 32, false, Method::kMinMax}), HasSubstr("bits=3"));
  EXPECT_THAT(message(source, {8, 32, false, Method::kHqq}), HasSubstr("symmetric"));
  EXPECT_THAT(message(source, {4, 64, false, Method::kMinMax}), HasSubstr("w: its 96 columns are not a multiple"));
  EXPECT_THAT(message(gaussian(2, 3, 1), {4, 0, false, Method::kMinMax}), HasSubstr("odd"));
  for (const float bad : {INFINITY, NAN}) {
    const Source broken = make_source(2, 32, [&](int64_t row, int64_t col) { return row + col == 5 ? bad : 1.0f; });
    EXPECT_THAT(message(broken, {4, 32, false, Method::kMinMax}), HasSubstr("not a finite"));
    EXPECT_THAT(message(broken, {4, 32, false, Method::kHqq}), HasSubstr("not a finite"));
  }
  const Source large = make_source(2, 32, [](int64_t, int64_t col) { return 1e5f * static_cast<float>(col); });
  EXPECT_THAT(message(large, {4, 32, false, Method::kHqq}, HqqArithmetic::kF16), HasSubstr("float16"));
  EXPECT_EQ(message(large, {4, 32, false, Method::kHqq}), "done");
}

TEST(Quantize, F16AndF32Sources) {
  // The same values in three types give the same codes.
  const Source source = golden();
  std::vector<float> f32(128);
  std::vector<uint16_t> f16(128);
  for (size_t i = 0; i < 128; ++i) f32[i] = bf16_to_float(source.bits[i]), f16[i] = float_to_f16(f32[i]);
  Matrix a = source.matrix, b = source.matrix;
  a.format = Format::kF32;
  a.codes = Tensor(f32.data(), DType::kF32, {2, 64});
  b.format = Format::kF16;
  b.codes = Tensor(f16.data(), DType::kF16, {2, 64});
  ThreadPool pool(1);
  const auto want = quantize(source, {});
  EXPECT_EQ(quantize(a, {}, HqqArithmetic::kF32, pool, "a").codes, want.codes);
  EXPECT_EQ(quantize(b, {}, HqqArithmetic::kF32, pool, "b").codes, want.codes);
}

TEST(Rounding, EqualsTheReferences) {
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 9973) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (std::isnan(x)) continue;
    ASSERT_EQ(round_to_f16_fast(x), round_to_f16(x)) << x;
    ASSERT_EQ(round_half_even(x), std::nearbyint(x)) << x;
  }
  for (const float x : {0.5f, 1.5f, 2.5f, -0.5f, -2.5f, 4194304.5f, -8388607.5f}) {
    EXPECT_EQ(round_half_even(x), std::nearbyint(x));
  }
}

}  // namespace
}  // namespace gemma4
