// Output tiles of the GEMM kernels (gemm_wgmma.cu, gemm_mma.cu): which of them a block computes, and which columns of
// out the rows of packed weights are. Whole waves of tiles go one to a block. Those that are left are divided along the
// columns of w into equal ranges (stream-K), one for each block.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/gemm/linear.h"

namespace gemma4::cuda {

// The first of the column ranges of all divided tiles that block `block` computes. The product fits 32 bits: see
// divide_tiles().
template <typename Arguments>  // those of a kernel, with tiles, whole_tiles and col_tiles
__device__ __forceinline__ int first_range(const Arguments& p, int block) {
  return static_cast<int>(static_cast<uint32_t>(p.tiles - p.whole_tiles) * p.col_tiles * block / gridDim.x);
}

// How many of them it computes.
template <typename Arguments>
__device__ __forceinline__ int split_ranges(const Arguments& p, int block) {
  return first_range(p, block + 1) - first_range(p, block);
}

// Walks what a block computes: column ranges [begin, end), of 64 columns each, of output tile `tile`. It holds little,
// because the sums of a tile take nearly all registers.
struct TileCursor {
  int tile, begin, end;
  int left = 0;          // column ranges of divided tiles, from here on
  bool divided = false;  // tile is one of those

  template <typename Arguments>
  __device__ explicit TileCursor(const Arguments& p) : tile(blockIdx.x), begin(0), end(p.col_tiles) {
    if (tile >= p.whole_tiles) divide(p);
  }
  template <typename Arguments>
  __device__ void divide(const Arguments& p) {
    const int first = first_range(p, blockIdx.x);
    left = split_ranges(p, blockIdx.x), divided = true;
    tile = p.whole_tiles + first / p.col_tiles, begin = first % p.col_tiles, end = min(p.col_tiles, begin + left);
  }
  __device__ bool more() const { return !divided || left > 0; }
  template <typename Arguments>
  __device__ void next(const Arguments& p) {
    if (divided) {
      left -= end - begin;
      ++tile, begin = 0, end = min(p.col_tiles, left);
    } else {
      tile += gridDim.x;
      if (tile >= p.whole_tiles) divide(p);
    }
  }
};

// The first column of out for vector `vector` (8 neighbouring packed rows, or outputs) of a row tile; -1 for padding.
template <typename Arguments>  // those of a kernel, with rows, paired and geglu
__device__ __forceinline__ int vector_row(const Arguments& p, int row_tile, int vector) {
  if (p.geglu) {  // 8 outputs from each 16 packed rows
    const int row = row_tile * (kRowTileRows / 2) + vector * 8;
    return row < p.rows / 2 ? row : -1;
  }
  const int packed_row = row_tile * kRowTileRows + vector * 8;
  if (!p.paired) return packed_row < p.rows ? packed_row : -1;
  const int row = packed_row / 16 * 8;
  return row >= p.rows / 2 ? -1 : packed_row % 16 == 0 ? row : p.rows / 2 + row;
}

}  // namespace gemma4::cuda
