// linear and embed in every format, at the widths of 31B (with few outputs, because ref is slow) and at awkward ones.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/op_testing.h"

namespace gemma4 {
namespace {

class LinearTest : public OpTest {
 protected:
  // Error of out = x w^T against ref.
  double error(const HostMatrix& w, int64_t rows, Random& random) {
    const Floats values = random.values(rows * w.matrix.cols);
    return relative_error(multiply(*be, w, values, rows), multiply(*ref, w, values, rows));
  }
  static Floats multiply(Backend& b, const HostMatrix& w, const Floats& values, int64_t rows) {
    const Matrix uploaded = b.upload({&w.matrix, 1});
    const Tensor x = put(b, values, {rows, w.matrix.cols});
    const Tensor out = b.alloc(b.activation_type(), {rows, w.matrix.rows});
    b.linear(out, x, uploaded);
    Floats result = get(b, out);
    b.release(x), b.release(out);
    return result;
  }
  // Sums of `cols` products in float32, in order: the error of each step is 2^-24 of the partial sum, and steps add as
  // a random walk. 1e-5 of the largest output holds for 21504 columns with room.
  // Over 4-bit codes the cpu backend rounds x to 16 bits in blocks of 32 columns: each element by at most 2^-16 of its
  // block's largest, which is 2e-5 of a usual one; the output's errors are as independent as its terms.
  static constexpr double kRounded = 4e-5;
  double limit(Format format) const {
    const bool rounded = format == Format::kInt4 || format == Format::kQ4_0 || format == Format::kQ4_K;
    return tolerance(*be, rounded ? kRounded : 1e-5);
  }
};

struct Shape {
  int64_t rows, cols;
};

constexpr Format kDense[] = {Format::kF32, Format::kF16, Format::kBF16, Format::kInt4, Format::kInt8};

TEST_P(LinearTest, WidthsOf31B) {
  Random random(1);
  for (const Shape shape : {Shape{40, 5376}, Shape{33, 21504}, Shape{32, 8192}, Shape{32, 16384}, Shape{96, 1152}}) {
    for (const Format format : kDense) {
      const int64_t cols = kSlowBuild ? shape.cols / 4 : shape.cols;
      const HostMatrix w = random_matrix(format, shape.rows, cols, format == Format::kInt8 ? cols : 32, random);
      for (const int64_t rows : {1, 9}) {
        EXPECT_LE(error(w, rows, random), limit(format))
            << info(format).name << " " << cols << " columns, " << rows << " rows";
      }
    }
  }
}

// One panel and more, the last one not full; every number of rows up to two register tiles and past the block.
TEST_P(LinearTest, EveryNumberOfRows) {
  Random random(2);
  for (const Format format : kDense) {
    const HostMatrix w = random_matrix(format, 70, 192, 32, random);
    for (int64_t rows = 1; rows <= 34; rows += kSlowBuild ? 3 : 1) {
      EXPECT_LE(error(w, rows, random), limit(format)) << info(format).name << " " << rows << " rows";
    }
    EXPECT_LE(error(w, 130, random), limit(format)) << info(format).name;
  }
}

// Columns that fill no vector, no word of codes and no block; one output; scales for each row; odd widths.
TEST_P(LinearTest, AwkwardShapes) {
  Random random(3);
  for (const int64_t rows : {1, 2, 7, 16, 17, 40}) {
    for (const Format format : {Format::kF32, Format::kF16, Format::kBF16}) {
      for (const int64_t cols : {1, 2, 7, 97, 588}) {
        for (const int64_t outputs : {1, 31, 33}) {
          const HostMatrix w = random_matrix(format, outputs, cols, 0, random);
          EXPECT_LE(error(w, rows, random), limit(format)) << info(format).name << " " << outputs << " x " << cols;
        }
      }
    }
    for (const int group : {8, 24, 64, 1032}) {
      const HostMatrix int4 = random_matrix(Format::kInt4, 33, group == 1032 ? 1032 : 1536, group, random);
      EXPECT_LE(error(int4, rows, random), limit(Format::kInt4)) << "int4 group " << group;
    }
    for (const int group : {7, 32, 96, 1155}) {
      const HostMatrix int8 = random_matrix(Format::kInt8, 33, group == 1155 ? 1155 : 672, group, random);
      EXPECT_LE(error(int8, rows, random), limit(Format::kInt8)) << "int8 group " << group;
    }
  }
}

TEST_P(LinearTest, GgmlBlocks) {
  Random random(4);
  for (int f = static_cast<int>(Format::kQ4_0); f <= static_cast<int>(Format::kQ6_K); ++f) {
    const Format format = static_cast<Format>(f);
    const HostMatrix w = random_matrix(format, 37, 768, 0, random);
    for (const int64_t rows : {1, 5, 19}) {
      EXPECT_LE(error(w, rows, random), limit(format)) << info(format).name << " " << rows << " rows";
    }
  }
}

TEST_P(LinearTest, ScalesInFloat32) {
  Random random(5);
  HostMatrix w = random_matrix(Format::kInt8, 33, 160, 32, random);
  Floats scale = random.values(33 * 5, 0.001f, 0.002f);
  for (float& s : scale) s *= 1.0001f;  // not a bfloat16
  w.matrix.scale = Tensor(scale.data(), DType::kF32, {33, 5});
  for (const int64_t rows : {1, 20}) EXPECT_LE(error(w, rows, random), limit(Format::kInt8)) << rows;
}

// GPTQ's and AWQ's scales: float16, with more digits than bfloat16. cuda rounds them.
TEST_P(LinearTest, Int4WithScalesOfFloat16) {
  Random random(11);
  for (const int group : {32, 128}) {
    HostMatrix w = random_matrix(Format::kInt4, 96, 512, group, random);
    std::vector<uint16_t> scale(static_cast<size_t>(96 * 512 / group)), zero(scale.size());
    for (size_t i = 0; i < scale.size(); ++i) {
      scale[i] = float_to_f16(0.01f + 0.0001f * static_cast<float>(i % 89));
      zero[i] = float_to_f16(static_cast<float>(i % 16));
    }
    w.matrix.scale = Tensor(scale.data(), DType::kF16, {512 / group, 96});
    w.matrix.zero = Tensor(zero.data(), DType::kF16, {512 / group, 96});
    for (const int64_t rows : {1, 20}) EXPECT_LE(error(w, rows, random), limit(Format::kInt4)) << group << " " << rows;
  }
}

// Matrices stacked along rows, strided views of matrices, and views of activations.
TEST_P(LinearTest, StackedMatricesAndStridedViews) {
  Random random(6);
  const HostMatrix a = random_matrix(Format::kInt4, 48, 256, 32, random),
                   b = random_matrix(Format::kInt4, 40, 256, 32, random);
  const std::vector<Matrix> stacked = {slice_cols(slice_rows(a.matrix, 5, 40), 64, 128),
                                       slice_cols(b.matrix, 128, 128)};
  for (const int64_t rows : {3, 25}) {
    const Floats values = random.values(rows * 300);
    Floats results[2];
    for (int i = 0; i < 2; ++i) {
      Backend& side = i == 0 ? *be : *ref;
      const Matrix w = side.upload(stacked);
      ASSERT_EQ(w.rows, 80);
      const Tensor x = put(side, values, {rows, 300});
      const Tensor wide = side.alloc(side.activation_type(), {rows, 200});
      side.linear(wide.columns(64, 80), x.columns(128, 128), w);
      results[i] = get(side, wide);
    }
    EXPECT_LE(relative_error(results[0], results[1]), limit(Format::kInt4));
    EXPECT_EQ(results[0][63], 0);  // beside the view nothing is written
    EXPECT_EQ(results[0][144], 0);
  }
}

// The result of a row does not depend on the other rows of the batch.
TEST_P(LinearTest, AloneAsInABatch) {
  if (be->activation_type() != DType::kF32) GTEST_SKIP() << "bit equality across batch sizes is the cpu backend's rule";
  Random random(7);
  for (const Format format : kDense) {
    const HostMatrix w = random_matrix(format, 70, 1056, 32, random);
    const Floats values = random.values(40 * 1056);
    const Floats all = multiply(*be, w, values, 40);
    for (const int64_t rows : {1, 2, 5, 13, 17}) {
      const Floats some = multiply(*be, w, Floats(values.begin(), values.begin() + rows * 1056), rows);
      EXPECT_EQ(some, Floats(all.begin(), all.begin() + rows * 70)) << info(format).name << " " << rows;
    }
  }
}

// Values far apart in size: blocks of 32 columns that hold one large value, none but zeros, and values of 1e-30 and
// 1e30. The 31 beside a large one are rounded to 2^-16 of it, and the output is little else: four times the error.
TEST_P(LinearTest, ValuesOfAllSizes) {
  Random random(10);
  for (const Format format : {Format::kInt4, Format::kQ4_0, Format::kQ4_K, Format::kInt8, Format::kBF16}) {
    const HostMatrix w = random_matrix(format, 64, 1024, 32, random);
    for (const float size : {1e-30f, 1.0f, 1e30f}) {
      for (const int64_t rows : {1, 5, 18}) {
        Floats values = random.values(rows * 1024);
        for (float& v : values) v *= size;
        for (int64_t i = 0; i < rows; ++i) {
          values[i * 1024 + 100 + i] *= 3e4f;
          std::fill_n(values.begin() + i * 1024 + 256, 64, 0.0f);
        }
        const double error = relative_error(multiply(*be, w, values, rows), multiply(*ref, w, values, rows));
        EXPECT_LE(error, limit(format) * 4) << info(format).name << " " << rows << " rows of " << size;
        EXPECT_GT(error, 0) << "compared with itself?";
      }
    }
    EXPECT_EQ(multiply(*be, w, Floats(1024, 0.0f), 1), Floats(64, 0.0f)) << info(format).name;
  }
}

// A NaN or an infinity in x makes the output of its row not finite, so that a server notices; other rows do not change.
TEST_P(LinearTest, WhatIsNotANumberStaysNone) {
  Random random(11);
  for (const Format format : {Format::kInt4, Format::kQ4_K, Format::kInt8, Format::kBF16}) {
    const HostMatrix w = random_matrix(format, 40, 512, 32, random);
    Floats values = random.values(3 * 512);
    const Floats before = multiply(*be, w, values, 3);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      values[512 + 77] = bad;
      const Floats after = multiply(*be, w, values, 3);
      for (size_t i = 0; i < after.size(); ++i) {
        if (i / 40 == 1) {
          EXPECT_FALSE(std::isfinite(after[i])) << info(format).name << " " << i;
        } else {
          EXPECT_EQ(after[i], before[i]) << info(format).name << " " << i;
        }
      }
    }
  }
}

TEST_P(LinearTest, Embed) {
  Random random(8);
  for (int f = static_cast<int>(Format::kF32); f <= static_cast<int>(Format::kQ6_K); ++f) {
    const Format format = static_cast<Format>(f);
    const HostMatrix w = random_matrix(format, 70, 256, format == Format::kInt8 ? 256 : 32, random);
    Floats results[2];
    for (int i = 0; i < 2; ++i) {
      Backend& side = i == 0 ? *be : *ref;
      const Matrix table = side.upload({&w.matrix, 1});
      const Tensor out = side.alloc(side.residual_type(), {4, 256});
      side.embed(out, table, put_ints(side, {69, 0, 33, 0}, {4, 1}), 9.8125f);
      results[i] = get(side, out);
    }
    EXPECT_LE(relative_error(results[0], results[1]), tolerance(*be, 1e-6)) << info(format).name;
  }
}

// The canary: a wrong scale in one group must be seen.
TEST_P(LinearTest, SeesOneWrongScale) {
  Random random(9);
  HostMatrix w = random_matrix(Format::kInt4, 64, 5376, 32, random);
  const Floats values = random.values(5376);
  const Floats want = multiply(*ref, w, values, 1);
  auto* scale = w.matrix.scale.row<uint16_t>(100);
  scale[3] = static_cast<uint16_t>(scale[3] + 8);  // 3 to 6 % of one scale of 168
  EXPECT_GT(relative_error(multiply(*be, w, values, 1), want), kRounded);
}

GEMMA4_FOR_EACH_BACKEND(LinearTest);

}  // namespace
}  // namespace gemma4
