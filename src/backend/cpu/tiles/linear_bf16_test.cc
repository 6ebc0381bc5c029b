// Products of many rows in bf16, by every engine of this machine and by plain loops, against ref.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/tiles/bf16_tiles.h"
#include "backend/op_testing.h"

namespace gemma4::cpu {
namespace {

// x and w are each rounded to 8 bits: a term by 2^-8 at most and 2^-9 usually; the errors of `cols` terms are
// independent, as the terms are.
constexpr double kLimit = 4e-3;

class LinearBf16 : public ::testing::TestWithParam<const TileEngine*> {
 protected:
  static Floats multiply(Backend& be, const HostMatrix& w, const Floats& values, int64_t rows,
                         bool feeds_attention = false) {
    Matrix uploaded = be.upload({&w.matrix, 1});
    uploaded.feeds_attention = feeds_attention;
    const Tensor x = put(be, values, {rows, w.matrix.cols});
    const Tensor out = be.alloc(DType::kF32, {rows, w.matrix.rows});
    be.linear(out, x, uploaded);
    Floats result = get(be, out);
    be.release(x), be.release(out);
    return result;
  }
  double error(const HostMatrix& w, int64_t rows, Random& random, bool feeds_attention = false) {
    Floats values = random.values(rows * w.matrix.cols);
    for (float& v : values) v /= 3;  // not bf16 any more
    return relative_error(multiply(be_, w, values, rows, feeds_attention), multiply(*ref_, w, values, rows));
  }

  void SetUp() override { be_.use_tiles(GetParam()); }
  CpuBackend be_{2};
  const std::unique_ptr<Backend> ref_ = make_ref();
};

TEST_P(LinearBf16, WidthsOf31B) {
  Random random(1);
  for (const int64_t cols : {1152, 4304, 5376, 21504}) {
    for (const Format format : {Format::kBF16, Format::kInt4, Format::kInt8, Format::kQ4_0}) {
      if (format != Format::kBF16 && cols == 4304) continue;  // the tower's, in bf16 alone
      const HostMatrix w =
          random_matrix(format, 40, cols, format == Format::kInt8 ? static_cast<int>(cols) : 32, random);
      EXPECT_LE(error(w, 33, random), kLimit) << info(format).name << " " << cols;
    }
  }
  for (const Format format : {Format::kQ4_K, Format::kQ6_K, Format::kQ8_0}) {
    const HostMatrix w = random_matrix(format, 70, 5376, 0, random);
    EXPECT_LE(error(w, 40, random), kLimit) << info(format).name;
  }
}

// Rows that fill no tile and more than one chunk of 512; columns that fill no tile, pair or block; one output.
TEST_P(LinearBf16, AwkwardShapes) {
  Random random(2);
  for (const int64_t rows : {32, 47, 48, 49, 513, 600}) {
    for (const int64_t cols : {1, 2, 31, 33, 97, 588}) {
      for (const int64_t outputs : {1, 33}) {
        const HostMatrix w = random_matrix(Format::kBF16, outputs, cols, 0, random);
        EXPECT_LE(error(w, rows, random), 2 * kLimit) << outputs << " x " << cols << ", " << rows << " rows";
      }
    }
  }
  for (const int group : {8, 16, 24, 32, 64, 128}) {
    const HostMatrix w = random_matrix(Format::kInt4, 65, int64_t{group} * 27, group, random);
    EXPECT_LE(error(w, 36, random), kLimit) << "groups of " << group;
  }
  for (const int group : {3, 40, 600}) {
    const HostMatrix w = random_matrix(Format::kInt8, 65, int64_t{group} * 3, group, random);
    EXPECT_LE(error(w, 36, random), 2 * kLimit) << "groups of " << group;
  }
}

// With both halves of x and weights that are bf16 what is left out is 2^-16 of a term.
TEST_P(LinearBf16, WhatFeedsAttentionKeepsBothHalvesOfX) {
  Random random(6);
  for (const int64_t cols : {33, 1152, 5376}) {
    const HostMatrix w = random_matrix(Format::kBF16, 70, cols, 0, random);
    EXPECT_LE(error(w, 49, random, true), 2e-5) << cols;
  }
  const HostMatrix w = random_matrix(Format::kInt4, 70, 5376, 32, random);
  EXPECT_LE(error(w, 49, random, true), kLimit);  // these weights are rounded
}

// A row alone in bf16 tiles has the bits that it has beside any others.
TEST_P(LinearBf16, ARowDoesNotDependOnTheOthers) {
  Random random(3);
  const HostMatrix w = random_matrix(Format::kInt4, 96, 1536, 32, random);
  const Floats values = random.values(700 * 1536);
  const Floats all = multiply(be_, w, values, 700);
  const Floats some = multiply(be_, w, Floats(values.begin() + 500 * 1536, values.end()), 200);
  for (size_t i = 0; i < some.size(); ++i) ASSERT_EQ(some[i], all[500 * 96 + i]) << i;
}

TEST_P(LinearBf16, WhatIsNotANumberStaysNone) {
  Random random(4);
  const HostMatrix w = random_matrix(Format::kBF16, 40, 64, 0, random);
  Floats values = random.values(40 * 64);
  values[3 * 64 + 5] = std::numeric_limits<float>::quiet_NaN();
  values[7 * 64] = std::numeric_limits<float>::infinity();
  const Floats out = multiply(be_, w, values, 40);
  for (int64_t row = 0; row < 40; ++row) {
    for (int64_t n = 0; n < 40; ++n) {
      EXPECT_EQ(std::isfinite(out[static_cast<size_t>(row * 40 + n)]), row != 3 && row != 7) << row << " " << n;
    }
  }
}

// The test above would pass with float32 products: this one sees that tiles are used, and that few rows are not.
TEST_P(LinearBf16, RoundsManyRowsAndNotFew) {
  Random random(5);
  const HostMatrix w = random_matrix(Format::kBF16, 64, 1024, 0, random);
  EXPECT_LE(error(w, 31, random), 1e-5);
  EXPECT_GE(error(w, 32, random), 1e-4);
  be_.allow_bf16(false);
  EXPECT_LE(error(w, 32, random), 1e-5);
}

std::string name_of(const ::testing::TestParamInfo<const TileEngine*>& info) {
  std::string name = info.param->name;
  std::erase_if(name, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); });
  return name;
}
INSTANTIATE_TEST_SUITE_P(Engines, LinearBf16, ::testing::ValuesIn(tile_engines()), name_of);

}  // namespace
}  // namespace gemma4::cpu
