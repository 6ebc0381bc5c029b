// linear(): which kernel multiplies by a weight of which layout.
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/tiles/bf16_tiles.h"

namespace gemma4::cpu {

void linear_int4(const Context&, const Tensor& out, const Tensor& x, const Packed& w);
void linear_int8(const Context&, const Tensor& out, const Tensor& x, const Packed& w);
void linear_float(const Context&, const Tensor& out, const Tensor& x, const Packed& w);
void linear_kquants(const Context&, const Tensor& out, const Tensor& x, const Packed& w);
void linear_blocks(const Context&, const Tensor& out, const Tensor& x, const Packed& w);
bool has_bf16_product(const TileEngine&, const Packed& w);
void linear_bf16(const Context&, const TileEngine&, const Tensor& out, const Tensor& x, const Packed& w, bool split);

// So many rows pay for decoding weights to bf16. Fewer, as most steps of answers have, keep the arithmetic of a row
// alone.
constexpr int64_t kBf16Rows = 32;

void CpuBackend::linear(Tensor out, Tensor x, const Matrix& w) {
  CHECK(is_f32(out) && is_f32(x) && out.rows() == x.rows());
  CHECK(x.row_size() == w.cols && out.row_size() == w.rows && out.data != x.data);
  if (x.rows() == 0) return;
  const Packed& p = packed(w);
  const Context c = context();
  if (tiles_ != nullptr && x.rows() >= kBf16Rows && has_bf16_product(*tiles_, p))
    return linear_bf16(c, *tiles_, out, x, p, w.feeds_attention);
  switch (p.layout) {
    case Layout::kInt4:
      return linear_int4(c, out, x, p);
    case Layout::kInt8:
      return linear_int8(c, out, x, p);
    case Layout::kQ4K:
    case Layout::kQ6K:
      return linear_kquants(c, out, x, p);
    case Layout::kBlocks:
      return linear_blocks(c, out, x, p);
    default:
      return linear_float(c, out, x, p);
  }
}

}  // namespace gemma4::cpu
