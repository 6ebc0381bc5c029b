// out = x w^T over Packed weights, for any format that has a Decoder. There are two ways with the same arithmetic: each
// output is one chain of fused multiply-adds in ascending column order, so the result of a row is equal to the bit
// alone and in any batch.
//
// direct(), for few rows: bound by memory for 1 to 4 rows, by multiply-adds for more. Codes are decoded in registers,
// once for all rows, and never stored.
//
// blocked(), for many rows: bound by multiply-adds. A task decodes a block of weights to float32, which stays in its L2
// cache, and multiplies all rows by it in register tiles.
#if defined(GEMMA4_CPU_LINEAR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GEMMA4_CPU_LINEAR_INL_H_
#undef GEMMA4_CPU_LINEAR_INL_H_
#else
#define GEMMA4_CPU_LINEAR_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {

// The most rows of direct(): their accumulators fill the registers.
constexpr size_t kDirectRows = HWY_TARGET <= HWY_AVX3 ? 16 : 6;
// If 16 rows do not fit in the registers, up to this many groups of kDirectRows read each piece of a panel while it is
// in L1, so it is loaded from memory once. Every group decodes it again, so this pays only where decoding is cheap.
constexpr size_t kGroups = HWY_TARGET <= HWY_AVX3 ? 1 : 3;
// Sanitizers make kernels slow to compile. A build with them has fewer kernels than one for each number of rows, and
// pads the rows.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kFewKernels = true;
#else
constexpr bool kFewKernels = false;
#endif
constexpr int64_t kAhead = 4096;  // bytes
// Columns and panels of a block: 4 x 512 x 32 floats are 256 KiB, a quarter of a usual L2; 12 rows of 512 floats are
// half an L1.
constexpr int64_t kBlockCols = 512;
constexpr int64_t kBlockPanels = 4;  // panels of a task

// Vectors of outputs side by side in direct(): enough independent chains to hide the latency of an FMA (4 cycles, two
// per cycle), few enough to keep all of them in registers.
template <size_t M, size_t G>
constexpr size_t direct_vectors() {
  constexpr size_t all = kPanel / kLanes;
  if (G > 1) return 2;
  if (HWY_TARGET <= HWY_AVX3) return M <= 8 ? all : 1;
  return std::min<size_t>(all, M == 1 ? 4 : M <= 3 ? 2 : 1);
}

// Columns first .. first + depth - 1 of P panels: c [P, M, 32] (+)= x [depth, M]^T panel^T, for NV vectors of outputs
// from `lane` on. The hardware prefetcher is late at each new panel, so the kernel prefetches.
template <class Decoder, size_t M, size_t P, size_t NV>
HWY_INLINE void direct(const Packed& w, const uint8_t* panel, size_t lane, int64_t first, int64_t depth, const float* x,
                       float* c, int64_t further = 0) {
  const DF d;
  constexpr size_t U = P * NV;
  VF acc[M * U];
  const auto output = [&](auto i) GEMMA4_INLINE {
    constexpr size_t m = i / U, u = i % U;
    return c + (u / NV * M + m) * kPanel + lane + u % NV * kLanes;
  };
  unroll<M * U>([&](auto i) GEMMA4_INLINE { acc[i] = first > 0 ? hn::LoadU(d, output(i)) : hn::Zero(d); });
  for (int64_t k = first; k < first + depth;) {
    const uint8_t* at[P];
    typename Decoder::Group header[U];
    unroll<P>([&](auto p) GEMMA4_INLINE { at[p] = panel + p * w.panel_bytes + k / w.group * w.group_bytes; });
    unroll<U>([&](auto u) GEMMA4_INLINE { header[u] = Decoder::group(at[u / NV], lane + u % NV * kLanes); });
    const int64_t begin = k % w.group, end = std::min(w.group, begin + first + depth - k);
    for (int64_t i = begin; i < end; i += Decoder::kStep, k += Decoder::kStep, x += Decoder::kStep * M) {
      typename Decoder::Raw raw[U];
      unroll<U>([&](auto u) GEMMA4_INLINE {
        const uint8_t* codes = at[u / NV] + w.header_bytes;
        raw[u] = Decoder::load(codes, i, lane + u % NV * kLanes);
        if (u % NV == 0) Decoder::prefetch(codes + further, i);
      });
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
  unroll<M * U>([&](auto i) GEMMA4_INLINE { hn::StoreU(acc[i], d, output(i)); });
}

// Columns of x that stay in L1 while the task reads its panels: 32 KiB. One or two rows stream well from L2. With
// groups, L1 holds x, a piece of a panel (8 KiB in bf16) and the prefetched piece of the next panel.
template <size_t M, size_t G>
constexpr int64_t direct_depth() {
  if (G > 1) return 128;
  return M <= 2 ? int64_t{1} << 40 : (int64_t{32} << 10) / static_cast<int64_t>(M * sizeof(float)) / 64 * 64;
}

// G times M rows.
template <class Decoder, size_t M, size_t G>
HWY_NOINLINE void direct_panels(const Packed& w, int64_t begin, int64_t end, const float* x, float* c,
                                const Tensor& out) {
  constexpr size_t NV = direct_vectors<M, G>();
  constexpr size_t P = M <= 3 && NV * kLanes == kPanel && NV < 4 ? 2 : 1;  // enough chains also for few rows
  constexpr int64_t size = M * kPanel;
  const int64_t further = G > 1 ? w.panel_bytes - kAhead : 0;                      // the same columns of the next panel
  const int64_t x_size = (w.cols + 7) / 8 * 8 * M, c_size = (end - begin) * size;  // of a group of rows
  for (int64_t first = 0; first < w.cols; first += direct_depth<M, G>()) {
    const int64_t depth = std::min(direct_depth<M, G>(), w.cols - first);
    for (int64_t i = begin; i < end;) {
      const bool two = P == 2 && i + 1 < end;
      for (size_t g = 0; g < G; ++g) {
        const float* from = x + g * x_size + first * M;
        float* to = c + g * c_size + (i - begin) * size;
        if (two) {
          direct<Decoder, M, P, NV>(w, w.panel(i), 0, first, depth, from, to);
          continue;
        }
        for (size_t lane = 0; lane < kPanel; lane += NV * kLanes) {
          direct<Decoder, M, 1, NV>(w, w.panel(i), lane, first, depth, from, to, further);
        }
      }
      i += two ? 2 : 1;
    }
  }
  for (int64_t i = begin; i < end; ++i) {
    const int64_t count = std::min(kPanel, w.rows - i * kPanel);
    for (int64_t m = 0; m < out.rows(); ++m) {
      const float* from = c + m / M * c_size + (i - begin) * size + m % M * kPanel;
      std::memcpy(out.row<float>(m) + i * kPanel, from, count * sizeof(float));
    }
  }
}

// x [rows, cols] as [groups, cols rounded up to 8, M], rows beyond `rows` and columns beyond `cols` zero.
inline const float* interleave(const Context& ctx, const Tensor& x, int64_t cols, int64_t M, int64_t groups) {
  const int64_t rows = x.rows(), padded = (cols + 7) / 8 * 8;
  if (M * groups == 1 && padded == cols) return x.row<float>(0);
  float* packed = ctx.scratch.shared(padded * M * groups);
  ctx.pool.parallel_for(padded, (1 << 16) / (M * groups), [&](int64_t begin, int64_t end) {
    for (int64_t m = 0; m < M * groups; ++m) {
      const float* row = m < rows ? x.row<float>(m) : nullptr;
      float* to = packed + m / M * padded * M + m % M;
      for (int64_t k = begin; k < end; ++k) to[k * M] = row != nullptr && k < cols ? row[k] : 0;
    }
  });
  return packed;
}

// Panels of a task. Large matrices have large tasks, so that a thread streams through memory.
inline int64_t task_panels(const Context& ctx, const Packed& w, int64_t most) {
  return std::clamp<int64_t>(w.panels / (int64_t{4} * ctx.pool.threads()), 1, most);
}

template <class Decoder, size_t M, size_t G = 1>
void direct_rows(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  const float* packed = interleave(ctx, x, w.cols, M, G);
  const int64_t panels = task_panels(ctx, w, 8);
  ctx.scratch.reserve_local(panels * static_cast<int64_t>(G * M) * kPanel);
  ctx.pool.parallel_tasks((w.panels + panels - 1) / panels, [&](int thread, int64_t task) {
    float* c = ctx.scratch.local(thread);
    direct_panels<Decoder, M, G>(w, task * panels, std::min(w.panels, (task + 1) * panels), packed, c, out);
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

// A pair of columns as two bf16: the even one in the low half. Ties are rounded away from zero, which weights do not
// notice.
HWY_INLINE hn::Vec<DU> bf16_pair(VF even, VF odd) {
  const DU du;
  const auto half = hn::Set(du, 0x8000);
  const auto low = hn::ShiftRight<16>(hn::Add(hn::BitCast(du, even), half));
  return hn::Or(low, hn::And(hn::Add(hn::BitCast(du, odd), half), hn::Set(du, 0xffff0000u)));
}

// Columns first .. first + depth - 1 of a panel as pairs of bf16 [depth / 2, 32] (bf16_tiles.h).
template <class Decoder>
void decode_bf16(const Packed& w, int64_t panel, int64_t first, int64_t depth, uint32_t* to) {
  constexpr int64_t kPiece = 32;  // columns that are float32 meanwhile
  HWY_ALIGN float piece[(kPiece + 1) * kPanel];
  for (int64_t k = first; k < first + depth; k += kPiece) {
    const int64_t count = std::min(kPiece, first + depth - k);
    decode_block<Decoder>(w, w.panel(panel), k, count, piece);
    if (count % 2 != 0) std::fill_n(piece + count * kPanel, kPanel, 0.0f);
    for (int64_t i = 0; i < count; i += 2, to += kPanel) {
      for (size_t lane = 0; lane < kPanel; lane += kLanes) {
        const float* from = piece + i * kPanel + lane;
        hn::StoreU(bf16_pair(hn::LoadU(DF(), from), hn::LoadU(DF(), from + kPanel)), DU(), to + lane);
      }
    }
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

// Prefetches the block that is decoded next, before work that needs no memory bandwidth.
inline void prefetch_block(const Packed& w, const uint8_t* panel, int64_t first, int64_t depth) {
  const int64_t bytes = w.panel_bytes / w.cols;  // of a column, nearly
  for (int64_t line = first * bytes / 64; line <= (first + depth) * bytes / 64; ++line)
    hwy::Prefetch(panel + line * 64);
}

template <class Decoder>
void blocked(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  const int64_t cols = (w.cols + Decoder::kStep - 1) / Decoder::kStep * Decoder::kStep;
  const int64_t panels = task_panels(ctx, w, kBlockPanels);
  float* packed = ctx.scratch.shared((x.rows() + kTileRows) * kBlockCols);
  ctx.scratch.reserve_local(kBlockCols * kPanel);
  for (int64_t first = 0; first < cols; first += kBlockCols) {
    const int64_t depth = std::min(kBlockCols, cols - first);
    pack_rows(ctx, x, w.cols, first, depth, packed);
    ctx.pool.parallel_tasks((w.panels + panels - 1) / panels, [&](int thread, int64_t task) {
      float* b = ctx.scratch.local(thread);
      const int64_t end = std::min(w.panels, (task + 1) * panels);
      for (int64_t i = task * panels; i < end; ++i) {
        decode_block<Decoder>(w, w.panel(i), first, depth, b);
        if (i + 1 < w.panels) prefetch_block(w, w.panel(i + 1), first, depth);
        block_rows(out, w, i, packed, depth, b, first > 0);
      }
    });
  }
}

template <class Decoder, bool kCheap = false>
void linear_rows(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  const size_t rows = x.rows();
  if constexpr (kCheap && kGroups > 1) {
    if (rows > kDirectRows && rows <= kGroups * kDirectRows) {
      if constexpr (!kFewKernels) {
        if (rows <= 2 * kDirectRows) return direct_rows<Decoder, kDirectRows, 2>(ctx, out, x, w);
        if (rows <= 16) return direct_rows<Decoder, 4, 4>(ctx, out, x, w);  // 16 rows exactly, in place of 18
      }
      return direct_rows<Decoder, kDirectRows, kGroups>(ctx, out, x, w);
    }
  }
  if (rows > kDirectRows) return blocked<Decoder>(ctx, out, x, w);
  if (rows == 1) return direct_rows<Decoder, 1>(ctx, out, x, w);
  if constexpr (!kFewKernels) {
    if (rows == 2) return direct_rows<Decoder, 2>(ctx, out, x, w);
  }
  if (rows <= 3) return direct_rows<Decoder, 3>(ctx, out, x, w);
  if constexpr (!kFewKernels) {
    if (rows == 4) return direct_rows<Decoder, 4>(ctx, out, x, w);
    if (rows <= 6) return direct_rows<Decoder, 6>(ctx, out, x, w);
    if constexpr (kDirectRows > 6) {
      if (rows <= 8) return direct_rows<Decoder, 8>(ctx, out, x, w);
      if (rows <= 12) return direct_rows<Decoder, 12>(ctx, out, x, w);
    }
  }
  return direct_rows<Decoder, kDirectRows>(ctx, out, x, w);
}

// The low four bits of each lane as a float. The permute of AVX-512 ignores the other bits, so no mask is needed.
HWY_INLINE VF code_to_float(hn::Vec<DU> word) {
#if HWY_TARGET <= HWY_AVX3
  const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return VF{_mm512_permutexvar_ps(word.raw, table)};
#else
  const DI di;
  return hn::ConvertTo(DF(), hn::BitCast(di, hn::And(word, hn::Set(DU(), 15))));
#endif
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
