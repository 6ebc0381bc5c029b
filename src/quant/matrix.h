// Matrix: a weight [rows, cols] (out features, in features) in some Format. It is a view, like Tensor. A Matrix of a
// checkpoint points into the mapped file. A Matrix from Backend::upload() stands for the copy of that backend, in the
// backend's own layout.
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

  // The backend's copy, which this keeps alive. Only Backend::upload() sets it; null on a host matrix.
  std::shared_ptr<const void> uploaded;
  // Its products are queries, keys and values, whose errors a softmax magnifies: a backend that rounds x to bf16 for
  // speed (cpu) keeps what the rounding leaves.
  bool feeds_attention = false;
  int64_t device_bytes = 0;  // of the backend's copy

  std::shared_ptr<const void> hold;  // keeps the elements of a host matrix that Checkpoint::load() made; else null

  explicit operator bool() const { return format != Format::kNone; }
};

// An uploaded matrix as bytes in the layout of its backend, with their description. Backend::serialize() returns one
// and Backend::load_prepacked() reads one. An exported program is a file of them (checkpoint/program_file.h).
struct PrepackedWeight {
  Format format = Format::kNone;
  int64_t rows = 0, cols = 0;
  int group = 0;                     // as Matrix::group
  std::string layout;                // the backend's name of the layout
  std::span<const std::byte> bytes;  // aligned to a cache line
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

// Bytes that linear() reads: of the backend's copy, or of a host matrix.
inline int64_t matrix_bytes(const Matrix& m) {
  return m.uploaded ? m.device_bytes : m.codes.bytes() + m.scale.bytes() + m.zero.bytes();
}

// The smallest number of columns that slice_cols() can cut off: a group or a block. If a whole row is one group, it can
// be cut anywhere inside, because every slice keeps the scale of the row.
int column_block(const Matrix& m);

// Rows begin .. begin+count-1 as a view: a column-parallel shard, which computes a slice of the outputs.
Matrix slice_rows(const Matrix& m, int64_t begin, int64_t count);

// Columns begin .. begin+count-1 as a view: a row-parallel shard, which computes partial sums for an all-reduce. Throws
// Error unless both are multiples of column_block().
Matrix slice_cols(const Matrix& m, int64_t begin, int64_t count);

}  // namespace gemma4
