#include "quant/matrix.h"

#include <string>

namespace gemma4 {

Matrix slice_rows(const Matrix& m, int64_t begin, int64_t count) {
  CHECK(!m.uploaded && begin >= 0 && count >= 0 && begin + count <= m.rows);
  Matrix out = m;
  out.rows = count;
  out.codes = m.codes.slice(begin, count);
  if (m.format == Format::kInt4) {
    out.scale = m.scale.columns(begin, count);
    out.zero = m.zero.columns(begin, count);
  } else if (m.format == Format::kInt8) {
    out.scale = m.scale.slice(begin, count);
  }
  return out;
}

int column_block(const Matrix& m) {
  if (m.group > 0 && m.group == m.cols) return m.format == Format::kInt4 ? 8 : 1;  // backends read 8 codes at a time
  return m.group > 0 ? m.group : info(m.format).block_cols;
}

Matrix slice_cols(const Matrix& m, int64_t begin, int64_t count) {
  CHECK(!m.uploaded && begin >= 0 && count >= 0 && begin + count <= m.cols);
  const int block = column_block(m);
  if (begin % block != 0 || count % block != 0) {
    throw Error("cannot split a matrix of " + std::to_string(m.cols) + " columns at column " + std::to_string(begin) +
                ": its " + std::string(info(m.format).name) + " blocks are " + std::to_string(block) + " columns wide");
  }
  Matrix out = m;
  out.cols = count;
  const bool whole_row = m.group == m.cols;  // one group
  if (whole_row) out.group = static_cast<int>(count);
  if (m.format == Format::kInt4) {
    out.codes = m.codes.columns(begin / 2, count / 2);
    if (whole_row) return out;
    out.scale = m.scale.slice(begin / block, count / block);
    out.zero = m.zero.slice(begin / block, count / block);
  } else if (m.format == Format::kInt8) {
    out.codes = m.codes.columns(begin, count);
    if (!whole_row) out.scale = m.scale.columns(begin / block, count / block);
  } else if (is_ggml_block(m.format)) {
    out.codes = m.codes.columns(begin / block * info(m.format).block_bytes, row_bytes(out));
  } else {
    out.codes = m.codes.columns(begin, count);
  }
  return out;
}

}  // namespace gemma4
