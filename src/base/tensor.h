// Tensor: a view of memory, never its owner. Dimension 0 counts rows; each row is contiguous, and rows lie `stride`
// elements apart, so that a slice of columns (the q part of a fused qkv buffer) is a Tensor too. `data` may be a device
// pointer: only the backend that allocated it may read through it.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "base/check.h"
#include "base/dtype.h"

namespace gemma4 {

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, 4> shape{};  // [rows, ...]; unused dimensions are 1
  int64_t stride = 0;              // elements from one row to the next

  Tensor() = default;
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> dims) : data(data), dtype(dtype) {
    shape.fill(1);
    for (int64_t dim : dims) {
      CHECK(rank < 4);
      shape[rank++] = dim;
    }
    stride = row_size();
  }

  explicit operator bool() const { return data != nullptr; }
  int64_t rows() const { return shape[0]; }
  int64_t row_size() const { return shape[1] * shape[2] * shape[3]; }  // elements in a row
  int64_t size() const { return rows() * row_size(); }
  int64_t bytes() const { return size() * static_cast<int64_t>(dtype_size(dtype)); }
  bool contiguous() const { return stride == row_size() || rows() <= 1; }

  template <typename T>
  T* row(int64_t i) const {
    return static_cast<T*>(data) + i * stride;
  }

  // Rows begin .. begin+count-1.
  Tensor slice(int64_t begin, int64_t count) const {
    CHECK(begin >= 0 && count >= 0 && begin + count <= rows());
    Tensor t = *this;
    t.data = static_cast<char*>(data) + begin * stride * static_cast<int64_t>(dtype_size(dtype));
    t.shape[0] = count;
    return t;
  }

  // Elements begin .. begin+count-1 of every row, as [rows, count].
  Tensor columns(int64_t begin, int64_t count) const {
    CHECK(begin >= 0 && count >= 0 && begin + count <= row_size());
    Tensor t = *this;
    t.data = static_cast<char*>(data) + begin * static_cast<int64_t>(dtype_size(dtype));
    t.rank = 2;
    t.shape = {rows(), count, 1, 1};
    return t;
  }

  // The same rows seen as [rows, a, b].
  Tensor split(int64_t a, int64_t b) const {
    CHECK(a * b == row_size());
    Tensor t = *this;
    t.rank = 3;
    t.shape = {rows(), a, b, 1};
    return t;
  }
};

}  // namespace gemma4
