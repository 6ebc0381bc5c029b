#include "quant/pack.h"

#include "base/bf16.h"
#include "quant/blocks.h"

namespace gemma4 {
namespace {

float element(const Tensor& t, int64_t row, int64_t col) {
  switch (t.dtype) {
    case DType::kF32:
      return t.row<const float>(row)[col];
    case DType::kBF16:
      return bf16_to_float(t.row<const uint16_t>(row)[col]);
    case DType::kF16:
      return f16_to_float(t.row<const uint16_t>(row)[col]);
    default:
      CHECK(false);
  }
  return 0;
}

void unpack_int4(const Matrix& m, int64_t row, float* out) {
  const uint8_t* codes = m.codes.row<const uint8_t>(row);
  for (int64_t col = 0; col < m.cols; ++col) {
    const int code = col % 2 == 0 ? codes[col / 2] & 15 : codes[col / 2] >> 4;
    const int64_t g = col / m.group;
    out[col] = (static_cast<float>(code) - element(m.zero, g, row)) * element(m.scale, g, row);
  }
}

void unpack_int8(const Matrix& m, int64_t row, float* out) {
  const int8_t* codes = m.codes.row<const int8_t>(row);
  for (int64_t col = 0; col < m.cols; ++col) {
    out[col] = static_cast<float>(codes[col]) * element(m.scale, row, col / m.group);
  }
}

}  // namespace

void unpack_row(const Matrix& m, int64_t row, float* out) {
  CHECK(!m.uploaded && row >= 0 && row < m.rows);
  switch (m.format) {
    case Format::kF32:
    case Format::kF16:
    case Format::kBF16:
      for (int64_t col = 0; col < m.cols; ++col) out[col] = element(m.codes, row, col);
      return;
    case Format::kInt4:
      return unpack_int4(m, row, out);
    case Format::kInt8:
      return unpack_int8(m, row, out);
    case Format::kNone:
      CHECK(false);
      return;
    default:
      return unpack_blocks(m.format, m.codes.row<const uint8_t>(row), m.cols, out);
  }
}

}  // namespace gemma4
