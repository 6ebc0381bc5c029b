// What an exported program needs of the CUDA backend: a matrix that was serialized and loaded again is the same matrix.
// tests/whole_model_test.cc loads whole programs.
#include <cstring>

#include "backend/cuda/backend_pair_testing.h"

namespace gemma4 {
namespace {

class CudaPrepackedWeight : public CudaTest {
 protected:
  // bf16 or Q8_0 rows with random scales and codes.
  Matrix random_matrix(Format format, int64_t rows, int64_t cols) {
    Matrix m;
    m.format = format;
    m.rows = rows;
    m.cols = cols;
    const int64_t size = row_bytes(m);
    bytes_.emplace_back(static_cast<size_t>(rows * size));
    std::vector<uint8_t>& bytes = bytes_.back();
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_());
    if (format == Format::kBF16) {
      const std::vector<float> values = normal(rows * cols, 1);
      for (size_t i = 0; i < values.size(); ++i) {
        const uint16_t bits = float_to_bf16(values[i]);
        std::memcpy(&bytes[2 * i], &bits, 2);
      }
    } else {
      const uint16_t scale = float_to_f16(0.02f);
      for (size_t at = 0; at < bytes.size(); at += 34) std::memcpy(&bytes[at], &scale, 2);
    }
    m.codes = Tensor(bytes.data(), format == Format::kBF16 ? DType::kBF16 : DType::kU8,
                     {rows, format == Format::kBF16 ? cols : size});
    return m;
  }

  std::vector<std::vector<uint8_t>> bytes_;
};

TEST_F(CudaPrepackedWeight, ALoadedMatrixMultipliesLikeTheOriginal) {
  for (const Format format : {Format::kBF16, Format::kQ8_0}) {
    for (const size_t count : {size_t{1}, size_t{2}}) {  // two of equal height are interleaved
      std::vector<Matrix> parts;
      for (size_t i = 0; i < count; ++i) parts.push_back(random_matrix(format, 128, 256));
      const Matrix first = gpu().upload(parts);
      const PrepackedWeight stored = gpu().serialize(first);
      const int64_t used = gpu().memory_used();
      const Matrix second = gpu().load_prepacked(stored);
      EXPECT_EQ(gpu().memory_used(), used + static_cast<int64_t>(stored.bytes.size()));
      for (const int64_t rows : {1, 40}) {
        const int64_t outs = 128 * static_cast<int64_t>(count);
        const Tensor x = put(gpu(), DType::kBF16, {rows, 256}, normal(rows * 256, 1));
        const Tensor a = gpu().alloc(DType::kBF16, {rows, outs}), b = gpu().alloc(DType::kBF16, {rows, outs});
        gpu().linear(a, x, first);
        gpu().linear(b, x, second);
        EXPECT_EQ(get(gpu(), a), get(gpu(), b));
      }
    }
  }
}

TEST_F(CudaPrepackedWeight, AWrongSizeIsRefused) {
  PrepackedWeight stored = gpu().serialize(gpu().upload(std::vector{random_matrix(Format::kQ8_0, 128, 256)}));
  stored.rows = 256;
  EXPECT_THROW(gpu().load_prepacked(stored), Error);
}

}  // namespace
}  // namespace gemma4
