// out = x w^T over Packed weights, for any format given as a Decoder. Two ways, one arithmetic: each output is one
// chain of fused multiply-adds in ascending column order, so a row's result is the same to the bit alone and in any
// batch.
//
// direct():  few rows. Bound by memory for 1 to 4 rows, by multiply-adds beyond. Codes are decoded in registers once
// for
//            all rows and never stored.
// blocked(): many rows. Bound by multiply-adds. A task decodes a block of weights to float32 that stays in its L2 cache
//            and runs all rows over it in register tiles.
#if defined(GEMMA4_CPU_LINEAR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GEMMA4_CPU_LINEAR_INL_H_
#undef GEMMA4_CPU_LINEAR_INL_H_
#else
#define GEMMA4_CPU_LINEAR_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "backend/cpu/kernels.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {

// Rows that direct() takes at most: their accumulators fill the registers.
constexpr size_t kDirectRows = HWY_TARGET <= HWY_AVX3 ? 16 : 6;
// Columns and panels of a block: 4 x 512 x 32 floats are 256 KiB, a quarter of a usual L2; 12 rows of 512 floats are
// half an L1.
constexpr int64_t kBlockCols = 512;
constexpr int64_t kBlockPanels = 4;

// Vectors of outputs side by side in direct(): enough independent chains to hide the latency of an FMA (4 cycles, two a
// cycle), few enough to keep all in registers.
template <size_t M>
constexpr size_t direct_vectors() {
  constexpr size_t all = kPanel / kLanes;
  if (HWY_TARGET <= HWY_AVX3) return M <= 8 ? all : 1;
  return std::min<size_t>(all, M == 1 ? 4 : M <= 3 ? 2 : 1);
}

// c [M, P * 32] = x [cols, M]^T panels^T. P panels at once, rows lane .. lane + NV vectors of each.
template <class Decoder, size_t M, size_t P, size_t NV>
HWY_INLINE void direct(const Packed& w, const uint8_t* panel, size_t lane, const float* x, float* c) {
  const DF d;
  constexpr size_t U = P * NV;
  VF acc[M * U];
  unroll<M * U>([&](auto i) GEMMA4_INLINE { acc[i] = hn::Zero(d); });
  const int64_t groups = w.cols / w.group;
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* at[U];
    typename Decoder::Group header[U];
    unroll<U>([&](auto u) GEMMA4_INLINE {
      at[u] = panel + (u / NV) * w.panel_bytes + g * w.group_bytes;
      header[u] = Decoder::group(at[u], lane + (u % NV) * kLanes);
      at[u] += w.header_bytes;
    });
    for (int64_t k = 0; k < w.group; k += Decoder::kStep, x += Decoder::kStep * M) {
      typename Decoder::Raw raw[U];
      unroll<U>([&](auto u) GEMMA4_INLINE { raw[u] = Decoder::load(at[u], k, lane + (u % NV) * kLanes); });
      unroll<Decoder::kStep>([&](auto j) GEMMA4_INLINE {
        VF weight[U];
        unroll<U>([&](auto u) GEMMA4_INLINE { weight[u] = Decoder::template decode<j>(raw[u], header[u]); });
        unroll<M>([&](auto m) GEMMA4_INLINE {
          const VF xm = hn::Set(d, x[j * M + m]);
          unroll<U>([&](auto u) GEMMA4_INLINE { acc[m * U + u] = hn::MulAdd(xm, weight[u], acc[m * U + u]); });
        });
      });
    }
  }
  unroll<M * U>([&](auto i) GEMMA4_INLINE {
    constexpr size_t m = i / U, u = i % U;
    hn::StoreU(acc[i], d, c + m * P * kPanel + (u / NV) * kPanel + lane + (u % NV) * kLanes);
  });
}

template <class Decoder, size_t M, size_t P>
HWY_NOINLINE void direct_panels(const Packed& w, int64_t first, const float* x, int64_t rows, const Tensor& out) {
  constexpr size_t NV = direct_vectors<M>();
  HWY_ALIGN float c[M * P * kPanel];
  for (size_t lane = 0; lane < kPanel; lane += NV * kLanes) direct<Decoder, M, P, NV>(w, w.panel(first), lane, x, c);
  const int64_t begin = first * kPanel;
  const int64_t count = std::min<int64_t>(P * kPanel, w.rows - begin);
  for (int64_t m = 0; m < rows; ++m) {
    std::memcpy(out.row<float>(m) + begin, c + m * P * kPanel, count * sizeof(float));
  }
}

// x [rows, cols] as [cols rounded up to 8, M], rows beyond `rows` and columns beyond `cols` zero.
inline const float* interleave(const Context& ctx, const Tensor& x, int64_t cols, int64_t M) {
  const int64_t rows = x.rows(), padded = (cols + 7) / 8 * 8;
  if (M == 1 && padded == cols) return x.row<float>(0);
  float* packed = ctx.scratch.shared(padded * M);
  ctx.pool.parallel_for(padded, (1 << 16) / M, [&](int64_t begin, int64_t end) {
    for (int64_t m = 0; m < M; ++m) {
      const float* row = m < rows ? x.row<float>(m) : nullptr;
      for (int64_t k = begin; k < end; ++k) packed[k * M + m] = row != nullptr && k < cols ? row[k] : 0;
    }
  });
  return packed;
}

template <class Decoder, size_t M>
void direct_rows(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  const float* packed = interleave(ctx, x, w.cols, M);
  constexpr size_t P = M == 1 && HWY_TARGET <= HWY_AVX3 ? 2 : 1;
  ctx.pool.parallel_for(w.panels, P, [&](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + static_cast<int64_t>(P) <= end; i += P) direct_panels<Decoder, M, P>(w, i, packed, x.rows(), out);
    for (; i < end; ++i) direct_panels<Decoder, M, 1>(w, i, packed, x.rows(), out);
  });
}

// Columns first .. first + depth - 1 of a panel as float32 [depth, 32].
template <class Decoder>
HWY_INLINE void decode_block(const Packed& w, const uint8_t* panel, int64_t first, int64_t depth, float* b) {
  const DF d;
  for (int64_t k = first; k < first + depth;) {
    const int64_t begin = k % w.group;
    const int64_t count = std::min(first + depth - k, w.group - begin + w.group % Decoder::kStep);
    const uint8_t* group = panel + k / w.group * w.group_bytes;
    for (size_t lane = 0; lane < kPanel; lane += kLanes) {
      const auto header = Decoder::group(group, lane);
      float* to = b + (k - first) * kPanel + lane;
      for (int64_t i = begin; i < begin + count; i += Decoder::kStep, to += Decoder::kStep * kPanel) {
        const auto raw = Decoder::load(group + w.header_bytes, i, lane);
        unroll<Decoder::kStep>(
            [&](auto j) GEMMA4_INLINE { hn::StoreU(Decoder::template decode<j>(raw, header), d, to + j * kPanel); });
      }
    }
    k += count;
  }
}

// c [rows, 32] (+)= a b: one register tile of rows, a packed [depth, rows].
template <size_t MR>
HWY_NOINLINE void panel_tile(int64_t depth, const float* a, const float* b, float* c, int64_t ldc, bool accumulate) {
  constexpr size_t NV = std::min<size_t>(2, kPanel / kLanes);
  for (size_t col = 0; col < kPanel; col += NV * kLanes) {
    tile<MR, NV, 1, MR>(depth, a, b + col, kPanel, c + col, ldc, accumulate);
  }
}

using PanelTile = void (*)(int64_t depth, const float* a, const float* b, float* c, int64_t ldc, bool accumulate);
inline PanelTile choose_tile(size_t rows) {
  static constexpr PanelTile kTiles[] = {
      panel_tile<1>, panel_tile<2>, panel_tile<3>, panel_tile<4>,  panel_tile<5>,  panel_tile<6>,
      panel_tile<7>, panel_tile<8>, panel_tile<9>, panel_tile<10>, panel_tile<11>, panel_tile<12>,
  };
  return kTiles[rows - 1];
}

// Rows of x, columns first .. first + depth - 1, in tiles of kTileRows rows, each [depth, rows of the tile].
inline void pack_rows(const Context& ctx, const Tensor& x, int64_t cols, int64_t first, int64_t depth, float* packed) {
  const int64_t rows = x.rows(), tile = kTileRows;
  ctx.pool.parallel_for((rows + tile - 1) / tile, 2, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t count = std::min(tile, rows - t * tile);
      float* to = packed + t * tile * depth;
      for (int64_t m = 0; m < count; ++m) {
        const float* from = x.row<float>(t * tile + m) + first;
        const int64_t whole = std::min(depth, cols - first);
        for (int64_t k = 0; k < whole; ++k) to[k * count + m] = from[k];
        for (int64_t k = whole; k < depth; ++k) to[k * count + m] = 0;
      }
    }
  });
}

// All rows over one block of weights b [depth, 32]; the last panel may have fewer than 32 outputs.
inline void block_rows(const Tensor& out, const Packed& w, int64_t panel, const float* packed, int64_t depth,
                       const float* b, bool accumulate) {
  const int64_t begin = panel * kPanel, count = std::min(kPanel, w.rows - begin);
  HWY_ALIGN float edge[kTileRows * kPanel];
  for (int64_t m = 0; m < out.rows(); m += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, out.rows() - m);
    const float* a = packed + m * depth;
    const PanelTile run = choose_tile(rows);
    if (count == kPanel) {
      run(depth, a, b, out.row<float>(m) + begin, out.stride, accumulate);
      continue;
    }
    for (int64_t i = 0; i < rows && accumulate; ++i) {
      std::memcpy(edge + i * kPanel, out.row<float>(m + i) + begin, count * sizeof(float));
    }
    run(depth, a, b, edge, kPanel, accumulate);
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(out.row<float>(m + i) + begin, edge + i * kPanel, count * sizeof(float));
    }
  }
}

template <class Decoder>
void blocked(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  const int64_t cols = (w.cols + Decoder::kStep - 1) / Decoder::kStep * Decoder::kStep;
  const int64_t share = w.panels / (4 * ctx.pool.threads());
  const int64_t panels = std::clamp<int64_t>(share, 1, kBlockPanels);
  float* packed = ctx.scratch.shared((x.rows() + kTileRows) * kBlockCols);
  for (int64_t first = 0; first < cols; first += kBlockCols) {
    const int64_t depth = std::min(kBlockCols, cols - first);
    pack_rows(ctx, x, w.cols, first, depth, packed);
    ctx.pool.parallel_tasks((w.panels + panels - 1) / panels, [&](int thread, int64_t task) {
      float* b = ctx.scratch.local(thread, kBlockPanels * kBlockCols * kPanel);
      const int64_t end = std::min(w.panels, (task + 1) * panels);
      for (int64_t i = task * panels; i < end; ++i) {
        decode_block<Decoder>(w, w.panel(i), first, depth, b);
        block_rows(out, w, i, packed, depth, b, first > 0);
      }
    });
  }
}

template <class Decoder>
void linear_rows(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  const size_t rows = x.rows();
  if (rows > kDirectRows) return blocked<Decoder>(ctx, out, x, w);
  if (rows == 1) return direct_rows<Decoder, 1>(ctx, out, x, w);
  if (rows == 2) return direct_rows<Decoder, 2>(ctx, out, x, w);
  if (rows == 3) return direct_rows<Decoder, 3>(ctx, out, x, w);
  if (rows == 4) return direct_rows<Decoder, 4>(ctx, out, x, w);
  if (rows <= 6) return direct_rows<Decoder, 6>(ctx, out, x, w);
  if constexpr (kDirectRows > 6) {
    if (rows <= 8) return direct_rows<Decoder, 8>(ctx, out, x, w);
    if (rows <= 10) return direct_rows<Decoder, 10>(ctx, out, x, w);
    if (rows <= 12) return direct_rows<Decoder, 12>(ctx, out, x, w);
    if (rows <= 14) return direct_rows<Decoder, 14>(ctx, out, x, w);
    return direct_rows<Decoder, 16>(ctx, out, x, w);
  }
}

// A half-precision, bfloat16 or float vector as float32.
inline VF load_as_float(const uint8_t* at, size_t lane, hwy::bfloat16_t) {
  const DF d;
  const hn::Rebind<uint16_t, DF> d16;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(at) + lane);
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(DU(), bits)));
}
inline VF load_as_float(const uint8_t* at, size_t lane, hwy::float16_t) {
  const hn::Rebind<hwy::float16_t, DF> d16;
  return hn::PromoteTo(DF(), hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(at) + lane));
}
inline VF load_as_float(const uint8_t* at, size_t lane, float) {
  return hn::LoadU(DF(), reinterpret_cast<const float*>(at) + lane);
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
