// What the launchers of the GEMV and GEMM kernels on packed weights have in common: the arguments that follow from the
// call, and which output tiles of a GEMM are divided (output_tiles.cuh).
#pragma once

#include <algorithm>

#include "backend/cuda/gemm/kernels.h"
#include "base/check.h"

namespace gemma4::cuda {

// Arguments: those of a kernel, with these members.
template <typename Arguments>
void set_product(Arguments& p, const LinearCall& call) {
  const DeviceMatrix& w = call.w;
  CHECK(w.layout != Layout::kBF16 && w.cols % kWeightTileCols == 0);
  p.weights = static_cast<const uint8_t*>(w.data);
  p.out = call.out.data, p.out_stride = call.out.stride;
  p.n = static_cast<int>(call.x.rows()), p.rows = static_cast<int>(w.rows);
  p.col_tiles = static_cast<int>(w.cols / kWeightTileCols);
  p.row_tiles = static_cast<int>((w.rows + kRowTileRows - 1) / kRowTileRows);
  p.paired = w.paired, p.geglu = call.geglu, p.out_f32 = call.out.dtype == DType::kF32;
}

// Divides the last of `tiles` output tiles among `blocks` blocks, where whole waves leave some. Returns the grid.
template <typename Arguments>
int divide_tiles(Arguments& p, int tiles, int blocks) {
  p.tiles = tiles, p.whole_tiles = tiles / blocks * blocks;
  if (p.tiles - p.whole_tiles > blocks * 9 / 10) p.whole_tiles = p.tiles;  // nearly a wave: dividing gains nothing
  const int grid = p.whole_tiles == p.tiles ? std::min(blocks, p.tiles) : blocks;
  // first_range() computes in 32 bits.
  CHECK(static_cast<int64_t>(p.tiles - p.whole_tiles) * p.col_tiles * grid <= INT32_MAX);
  return grid;
}

}  // namespace gemma4::cuda
