// From a Layout to its codec (device/unpack.cuh) at compile time.
#pragma once

#include "backend/cuda/device/unpack.cuh"
#include "backend/cuda/gemm/select_kernel.h"

namespace gemma4::cuda {

// Calls body(Codec{}) with the codec of a packed layout.
template <typename Body>
void with_codec(Layout layout, Body&& body) {
  switch (layout) {
    case Layout::kInt4G32:
      return body(Int4Codec<2>{});
    case Layout::kInt4G64:
      return body(Int4Codec<1>{});
    case Layout::kInt4G32Frac:
      return body(Int4FracCodec<2>{});
    case Layout::kInt4G64Frac:
      return body(Int4FracCodec<1>{});
    case Layout::kQ4_0:
      return body(Q40Codec{});
    case Layout::kQ4_K:
      return body(Q4KCodec{});
    case Layout::kQ6_K:
      return body(Q6KCodec{});
    case Layout::kInt8G32:
      return body(Int8Codec<ScaleType::kBF16>{});
    case Layout::kInt8G64:
      return body(Int8Codec<ScaleType::kF32>{});
    case Layout::kQ8_0:
      return body(Int8Codec<ScaleType::kF16>{});
    case Layout::kBF16:
      CHECK(false);
  }
}

// What the packed bytes of a matrix are, for kernels that read single values.
struct Packed {
  const uint8_t* data;
  int rows, chunks;  // chunks: cols / 64
  bool paired;

  // Where row `row` of the stacked parts lies among the packed rows.
  __host__ __device__ int place(int row) const {
    if (!paired) return row;
    const int half = rows / 2, i = row < half ? row : row - half;
    return i / 8 * 16 + i % 8 + (row < half ? 0 : 8);
  }
};

inline Packed packed(const DeviceMatrix& w) {
  return {static_cast<const uint8_t*>(w.data), static_cast<int>(w.rows), static_cast<int>(w.cols / kChunkCols),
          w.paired};
}

// The first byte of the chunk that holds packed row `place` and column `col`.
__device__ __forceinline__ const uint8_t* chunk_of(const Packed& w, int place, int col, int bytes) {
  const int64_t index = (static_cast<int64_t>(place / kPanelRows) * w.chunks + col / kChunkCols) * kPanelChunks +
                        place % kPanelRows / kChunkRows;
  return w.data + index * bytes;
}

template <typename Codec>
__device__ __forceinline__ float packed_value(const Packed& w, int row, int col) {
  const int place = w.place(row);
  return Codec::value(chunk_of(w, place, col, Codec::kBytes), place % kChunkRows, col % kChunkCols);
}

}  // namespace gemma4::cuda
