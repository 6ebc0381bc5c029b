// Matrix: a weight [rows, cols] (out features, in features) in some Format; a view, like Tensor. From a checkpoint its
// parts point into the mapped file; from Backend::upload() they are the backend's own, in whatever layout it likes.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "base/tensor.h"
#include "quant/format.h"

namespace gemma4 {

struct Matrix {
  Format format = Format::kNone;
  int64_t rows = 0;
  int64_t cols = 0;
  int group = 0;  // kInt4, kInt8: columns that share a scale

  Tensor codes;  // [rows, ...]: elements, codes, or U8 [rows, bytes per row] of ggml blocks
  Tensor scale;  // kInt4: [cols/group, rows]; kInt8: [rows, cols/group]
  Tensor zero;   // kInt4: as scale; kInt8: empty (symmetric)

  // Set by Backend::upload() only; keeps the backend's copy alive and says what it is. Null on a host matrix.
  std::shared_ptr<const void> uploaded;
  int64_t device_bytes = 0;  // of that copy, in the backend's layout

  explicit operator bool() const { return format != Format::kNone; }
};

// An uploaded matrix outside its backend: what it is, and one run of bytes in that backend's layout.
// Backend::serialize() gives one and Backend::load_prepacked() takes one; an exported program is a file of them
// (checkpoint/program_file.h).
struct PrepackedWeight {
  Format format = Format::kNone;
  int64_t rows = 0, cols = 0;
  int group = 0;                     // as Matrix::group
  std::string layout;                // the backend's own word for what the bytes mean
  std::span<const std::byte> bytes;  // on a cache line's boundary
  std::shared_ptr<const void> hold;  // keeps `bytes` alive
};

inline int64_t row_bytes(const Matrix& m) {  // of `codes`
  switch (m.format) {
    case Format::kInt4:
      return m.cols / 2;
    case Format::kInt8:
      return m.cols;
    default:
      return m.cols / info(m.format).block_cols * info(m.format).block_bytes;
  }
}

// Bytes that a product reads: of the backend's copy, or of a host matrix.
inline int64_t matrix_bytes(const Matrix& m) {
  return m.uploaded ? m.device_bytes : m.codes.bytes() + m.scale.bytes() + m.zero.bytes();
}

// Columns that cannot be parted: a group or a block. A row that is one group may be: its parts keep its scale.
int column_block(const Matrix& m);

// Rows begin .. begin+count-1 as a view: a column-parallel shard (its outputs are a slice of the outputs).
Matrix slice_rows(const Matrix& m, int64_t begin, int64_t count);

// Columns begin .. begin+count-1 as a view: a row-parallel shard (partial sums to be all-reduced). Both must be
// multiples of column_block(), else Error.
Matrix slice_cols(const Matrix& m, int64_t begin, int64_t count);

}  // namespace gemma4
