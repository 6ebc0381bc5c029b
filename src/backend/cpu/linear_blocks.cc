// ggml's block formats without a kernel of their own: one tile of weights at a time is unpacked to float32
// (quant/blocks.h) and multiplied like any other. The weights stay packed in memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/linear_blocks.cc"  // NOLINT
#include "hwy/foreach_target.h"                            // IWYU pragma: keep

#include "backend/cpu/linear-inl.h"
#include "quant/blocks.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {
namespace {

void unpack_panel(const Packed& w, int64_t panel, int64_t first, int64_t depth, float* row, float* b) {
  const FormatInfo& f = info(w.format);
  const int64_t bytes = w.panel_bytes / kPanel;
  for (int64_t lane = 0; lane < kPanel; ++lane) {
    if (panel * kPanel + lane < w.rows) {
      unpack_blocks(w.format, w.panel(panel) + lane * bytes + first / f.block_cols * f.block_bytes, depth, row);
    } else {
      std::fill(row, row + depth, 0.0f);
    }
    for (int64_t k = 0; k < depth; ++k) b[k * kPanel + lane] = row[k];
  }
}

}  // namespace

void LinearBlocks(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  float* packed = ctx.scratch.shared((x.rows() + kTileRows) * kBlockCols);
  ctx.scratch.reserve_local(kBlockCols * kPanel + kBlockCols);
  for (int64_t first = 0; first < w.cols; first += kBlockCols) {
    const int64_t depth = std::min(kBlockCols, w.cols - first);
    pack_rows(ctx, x, w.cols, first, depth, packed);
    ctx.pool.parallel_tasks(w.panels, [&](int thread, int64_t panel) {
      float* b = ctx.scratch.local(thread);
      unpack_panel(w, panel, first, depth, b + kBlockCols * kPanel, b);
      block_rows(out, w, panel, packed, depth, b, first > 0);
    });
  }
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {
HWY_EXPORT(LinearBlocks);
void linear_blocks(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  HWY_DYNAMIC_DISPATCH(LinearBlocks)(ctx, out, x, w);
}
}  // namespace gemma4::cpu
#endif
