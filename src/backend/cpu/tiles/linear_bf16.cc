// out = x w^T for many rows on the matrix units: x and the weights as bf16, sums in float32 (bf16_tiles.h).
//
// A task takes some panels of weights and up to 512 rows of x, and goes through the columns 512 at a time: the weights
// of a panel become bf16 (32 KiB, in L1) and are multiplied by the rows (512 KiB, in L2), whose sums stay in the task's
// memory (64 KiB a panel) until all columns are done. So x is read from the shared cache once for all panels of a task,
// and sums never go to memory. Weights that are bf16 already are read where they lie.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/tiles/linear_bf16.cc"  // NOLINT
#include "hwy/foreach_target.h"                                // IWYU pragma: keep

#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/tiles/bf16-inl.h"
#include "backend/cpu/tiles/bf16_tiles.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {

void SplitToBf16(const float* x, int64_t n, uint16_t* high, uint16_t* low) { split_to_bf16(x, n, high, low); }

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {

HWY_EXPORT(SplitToBf16);

void int4_to_bf16(const Packed& w, int64_t panel, int64_t first, int64_t depth, uint32_t* to);
void int8_to_bf16(const Packed& w, int64_t panel, int64_t first, int64_t depth, uint32_t* to);
void kquants_to_bf16(const Packed& w, int64_t panel, int64_t first, int64_t depth, uint32_t* to);

namespace {

constexpr int64_t kBlockTiles = 16;  // tiles of columns of a block
constexpr int64_t kChunkTiles = 32;  // tiles of rows of a task
constexpr int64_t kMostPanels = 8;   // of a task
constexpr int64_t kBlockPairs = kBlockTiles * kTileCols / 2 * kPanel;

int64_t tiles(int64_t count, int64_t size) { return (count + size - 1) / size; }

// x as tiles [row tile] [column tile] [16] [32], zeros beyond its rows and columns; `low`: what rounding leaves, or
// null.
void pack_tiles(const Context& ctx, const Tensor& x, int64_t k_tiles, uint16_t* high, uint16_t* low) {
  const int64_t cols = x.row_size(), padded = tiles(x.rows(), kTileXRows) * kTileXRows;
  ctx.pool.parallel_for(padded, 4, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      int64_t at = m / kTileXRows * k_tiles * kTileElements + m % kTileXRows * kTileCols;
      for (int64_t k = 0; k < k_tiles; ++k, at += kTileElements) {
        const int64_t count = m < x.rows() ? std::min(kTileCols, cols - k * kTileCols) : 0;
        const float* from = x.row<float>(std::min(m, x.rows() - 1)) + k * kTileCols;
        HWY_DYNAMIC_DISPATCH(SplitToBf16)(from, count, high + at, low ? low + at : nullptr);
        std::fill_n(high + at + count, kTileCols - count, uint16_t{0});
        if (low) std::fill_n(low + at + count, kTileCols - count, uint16_t{0});
      }
    }
  });
}

// Tiles of columns from `first` on, `k_tiles` of them, of a panel: in the panel itself, or decoded to `to`.
const uint32_t* weights_of(const Packed& w, int64_t panel, int64_t first, int64_t k_tiles, uint32_t* to) {
  const int64_t begin = first * kTileCols, whole = k_tiles * kTileCols, depth = std::min(whole, w.cols - begin);
  if (w.layout == Layout::kBF16) {
    const auto* pairs = reinterpret_cast<const uint32_t*>(w.panel(panel)) + begin / 2 * kPanel;
    if (depth == whole) return pairs;
    std::copy_n(pairs, (depth + 1) / 2 * kPanel, to);
  } else if (w.layout == Layout::kInt4) {
    int4_to_bf16(w, panel, begin, depth, to);
  } else if (w.layout == Layout::kInt8) {
    int8_to_bf16(w, panel, begin, depth, to);
  } else {
    kquants_to_bf16(w, panel, begin, depth, to);
  }
  std::fill(to + (depth + 1) / 2 * kPanel, to + whole / 2 * kPanel, 0u);
  return to;
}

struct Product {
  const TileEngine& engine;
  const Tensor& out;
  const Packed& w;
  const uint16_t *high, *low;  // x, and what its rounding leaves or null
  int64_t k_tiles, row_tiles;

  // Panels first .. last - 1 for the rows of a chunk. `sums`: [panels] [rows of the chunk] [32].
  void run(int64_t first, int64_t last, int64_t chunk, float* sums, uint32_t* block) const {
    const int64_t row_tile = chunk * kChunkTiles, count = std::min(kChunkTiles, row_tiles - row_tile);
    const int64_t panel_sums = count * kTileXRows * kPanel;
    if (engine.begin) engine.begin();
    for (int64_t k = 0; k < k_tiles; k += kBlockTiles) {
      const int64_t depth = std::min(kBlockTiles, k_tiles - k);
      for (int64_t panel = first; panel < last; ++panel) {
        const uint32_t* b = weights_of(w, panel, k, depth, block);
        float* c = sums + (panel - first) * panel_sums;
        for (int64_t m = 0; m < count; m += 2, c += 2 * kTileXRows * kPanel) {
          const int64_t at = ((row_tile + m) * k_tiles + k) * kTileElements, next = k_tiles * kTileElements;
          const int rows = m + 1 < count ? 2 : 1;
          engine.product(high + at, next, rows, b, depth, c, k > 0);
          if (low) engine.product(low + at, next, rows, b, depth, c, true);
        }
      }
    }
    if (engine.end) engine.end();
    for (int64_t panel = first; panel < last; ++panel) {
      store(panel, row_tile * kTileXRows, count * kTileXRows, sums + (panel - first) * panel_sums);
    }
  }

  void store(int64_t panel, int64_t row, int64_t count, const float* sums) const {
    const int64_t outputs = std::min(kPanel, w.rows - panel * kPanel), rows = std::min(count, out.rows() - row);
    for (int64_t m = 0; m < rows; ++m) {
      std::copy_n(sums + m * kPanel, outputs, out.row<float>(row + m) + panel * kPanel);
    }
  }
};

}  // namespace

bool has_bf16_product(const TileEngine& engine, const Packed& w) {
  const bool codes = w.layout == Layout::kInt4 || w.layout == Layout::kQ4K;
  return w.layout == Layout::kBF16 || w.layout == Layout::kInt8 || w.layout == Layout::kQ6K ||
         (codes && engine.beats_integers);
}

void linear_bf16(const Context& ctx, const TileEngine& engine, const Tensor& out, const Tensor& x, const Packed& w,
                 bool split) {
  const int64_t k_tiles = tiles(w.cols, kTileCols), row_tiles = tiles(x.rows(), kTileXRows);
  const int64_t elements = row_tiles * k_tiles * kTileElements;
  auto* high = reinterpret_cast<uint16_t*>(ctx.scratch.shared(split ? elements : elements / 2));
  uint16_t* low = split ? high + elements : nullptr;
  pack_tiles(ctx, x, k_tiles, high, low);
  const Product product{engine, out, w, high, low, k_tiles, row_tiles};
  const int64_t chunks = tiles(row_tiles, kChunkTiles);
  const int64_t panels = std::clamp<int64_t>(w.panels * chunks / (int64_t{4} * ctx.pool.threads()), 1, kMostPanels);
  const int64_t groups = tiles(w.panels, panels);
  const int64_t sums = panels * std::min(row_tiles, kChunkTiles) * kTileXRows * kPanel;
  ctx.scratch.reserve_local(sums + kBlockPairs);
  ctx.pool.parallel_tasks(chunks * groups, [&](int thread, int64_t task) {
    float* local = ctx.scratch.local(thread);
    const int64_t first = task % groups * panels;
    product.run(first, std::min(w.panels, first + panels), task / groups, local,
                reinterpret_cast<uint32_t*>(local + sums));
  });
}

}  // namespace gemma4::cpu
#endif
