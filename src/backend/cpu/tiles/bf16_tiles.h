// Products of bf16 tiles with float32 sums, on the matrix units of x86 processors: AMX (Sapphire Rapids and later), or
// VDPBF16PS of AVX-512 (Zen 4, Cooper Lake and later). linear_bf16.cc chooses how a product of many rows is divided
// into them; this file is the arithmetic alone.
//
// Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (TDPBF16PS, VDPBF16PS: denormals are
// zeros, pairs of products are added before the sum); Linux, Documentation/arch/x86/xstate.rst (permission for tiles).
#pragma once

#include <cstdint>
#include <vector>

namespace gemma4::cpu {

constexpr int64_t kTileCols = 32;   // columns (k) of a tile
constexpr int64_t kTileXRows = 16;  // rows of x of a tile
constexpr int64_t kTileElements = kTileXRows * kTileCols;

struct TileEngine {
  const char* name;
  bool beats_integers;  // multiplies bf16 faster than the integer kernels of 4-bit codes multiply
  // A thread calls begin() before its first product, and end() after the last of a task. May be null.
  void (*begin)();
  void (*end)();
  // c [row_tiles * 16, 32] (+)= x w^T, row_tiles 1 or 2.
  //   a  tiles of x: [row tile, `a_stride` elements apart] [k_tiles] [16 rows] [32 columns] bf16
  //   b  a panel of weights: [k_tiles * 16] [32 outputs] of two bf16, the even column in the low half
  //   c  float32, 32 apart
  void (*product)(const uint16_t* a, int64_t a_stride, int row_tiles, const uint32_t* b, int64_t k_tiles, float* c,
                  bool accumulate);
};

// AMX; null where this machine has none, or where the kernel refuses the state that tiles need. VDPBF16PS is not
// chosen: it was measured on a busy machine alone (docs/BENCHMARKS.md).
const TileEngine* tile_engine();

// For tests: those that this machine runs, best first; the last one is loops in plain C++.
std::vector<const TileEngine*> tile_engines();

// Tile products from the first cache on the calling thread, for the machine's peak, and how many FLOPs that is.
void tile_products(const TileEngine& engine);
double tile_product_flops();

}  // namespace gemma4::cpu
