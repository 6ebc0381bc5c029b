// out = x w^T over 4-bit codes, w = code * scale + offset, with integer multiply-adds. They need half the instructions
// of decoding codes to floats, and one of them makes twice the products of a float32 multiply-add.
//
// Each row of x is quantised to int16 over blocks of 32 columns (16 or 8 if groups are smaller): x = q * s,
// s = max |x| / 32767. The sum of code * q over a block is exact in int32, and also in float32, because it is below
// 2^24 (32 * 15 * 32767). Blocks are added in ascending order by fused multiply-adds:
//
//   out += s * (scale * sum(code * q) + offset * sum(q))
//
// The arithmetic is the same for any number of rows, so the result of a row is equal to the bit alone and in any batch.
#if defined(GEMMA4_CPU_LINEAR_DOT16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GEMMA4_CPU_LINEAR_DOT16_INL_H_
#undef GEMMA4_CPU_LINEAR_DOT16_INL_H_
#else
#define GEMMA4_CPU_LINEAR_DOT16_INL_H_
#endif

#include <bit>

#include "backend/cpu/linear-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {

using VI = hn::Vec<DI>;

#if HWY_TARGET == HWY_NEON
// NEON multiplies the int16 of half a vector and adds the products to a whole vector of int32. So there are two sums,
// whose neighbouring lanes are added at the end of a block.
struct Sum {
  VI low, high;
};
HWY_INLINE Sum zero_sum() { return {hn::Zero(DI()), hn::Zero(DI())}; }
HWY_INLINE VI total(const Sum& sum) {
  const DI d;
  return hn::Add(hn::ConcatEven(d, sum.high, sum.low), hn::ConcatOdd(d, sum.high, sum.low));
}
template <bool>
HWY_INLINE Sum dot2(Sum sum, VI a, VI b) {
  const hn::Repartition<int16_t, DI> d16;
  sum.low = hn::ReorderWidenMulAccumulate(DI(), hn::BitCast(d16, a), hn::BitCast(d16, b), sum.low, sum.high);
  return sum;
}
#else
using Sum = VI;
HWY_INLINE Sum zero_sum() { return hn::Zero(DI()); }
HWY_INLINE VI total(Sum sum) { return sum; }

// In each lane: sum + the product of the low halves + that of the high halves, which are int16 in a and b. kVnni: with
// the one instruction for this, which Highway's AVX3 target does not have.
template <bool kVnni>
HWY_INLINE Sum dot2(Sum sum, VI a, VI b) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_SSE4
#if HWY_TARGET <= HWY_AVX3
  if constexpr (kVnni) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
    return sum;
  }
#endif
  const DI d;
  const hn::Repartition<int16_t, DI> d16;
  VI none = hn::Zero(d);
  sum = hn::ReorderWidenMulAccumulate(d, hn::BitCast(d16, a), hn::BitCast(d16, b), sum, none);
  // Keeps the order of the additions. Compilers reorder integer additions: they would make all products first, and
  // these would take the registers of the sums.
  __asm__("" : "+v"(sum.raw));
  return sum;
#else
  const VI low = hn::Mul(hn::ShiftRight<16>(hn::ShiftLeft<16>(a)), hn::ShiftRight<16>(hn::ShiftLeft<16>(b)));
  return hn::Add(sum, hn::Add(low, hn::Mul(hn::ShiftRight<16>(a), hn::ShiftRight<16>(b))));
#endif
}
#endif

// Codes J and J + 4 of the eight in each lane, as its low and high half.
template <size_t J>
HWY_INLINE VI code_pair(hn::Vec<DU> word) {
  const DI d;
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_SSE4) || HWY_TARGET == HWY_NEON
  if constexpr (J == 3) {  // a shift of 16-bit halves leaves only the top codes
    const hn::Repartition<uint16_t, DI> d16;
    return hn::BitCast(d, hn::ShiftRight<12>(hn::BitCast(d16, word)));
  }
#endif
  const auto mask = hn::Set(DU(), 0x000F000F);
  if constexpr (J == 0) return hn::BitCast(d, hn::And(word, mask));
  return hn::BitCast(d, hn::And(hn::ShiftRight<4 * static_cast<int>(J)>(word), mask));
}

// Columns of a block: at most 32, and a block lies in one group.
inline int64_t dot16_block(const Packed& w) { return w.group % 32 == 0 ? 32 : w.group % 16 == 0 ? 16 : 8; }

// Rows of x as int16, in groups of M rows that lie side by side:
//   pairs   [cols / 8] [4] [M] int32: columns j and j + 4 of eight
//   factors [cols / block] [2] [M] float: s, sum of q
template <size_t M>
struct Rows16 {
  const float* data;
  int64_t cols, block;

  int64_t size() const { return static_cast<int64_t>(M) * (cols / 2 + 2 * cols / block); }  // of a group, in floats
  const int32_t* pairs(int64_t g) const { return reinterpret_cast<const int32_t*>(data + g * size()); }
  const float* factors(int64_t g) const { return data + g * size() + static_cast<int64_t>(M) * cols / 2; }
};

// q [n] of x [n], n a multiple of 8; returns s. If all |x| are below 2^-100, q and s are zero. An infinity or a NaN has
// the largest bits and becomes s. Then q is zero, and the output is NaN.
HWY_INLINE float round16(const float* x, int64_t n, int32_t* q) {
  const hn::CappedTag<float, 8> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const hn::RebindToSigned<decltype(d)> di;
  constexpr uint32_t kInfinity = 0x7F800000;
  const int64_t step = hn::Lanes(d);
  auto most = hn::Zero(du);
  for (int64_t i = 0; i < n; i += step) {
    most = hn::Max(most, hn::And(hn::BitCast(du, hn::LoadU(d, x + i)), hn::Set(du, 0x7FFFFFFF)));
  }
  const uint32_t bits = hn::GetLane(hn::MaxOfLanes(du, most));
  const float largest = std::bit_cast<float>(bits);
  if (largest < 0x1p-100f || bits >= kInfinity) {
    std::memset(q, 0, n * sizeof(int32_t));
    return bits >= kInfinity ? largest : 0.0f;
  }
  const auto inverse = hn::Set(d, 32767.0f / largest);
  for (int64_t i = 0; i < n; i += step) hn::StoreU(hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), inverse)), di, q + i);
  return largest / 32767.0f;
}

template <size_t M>
HWY_INLINE void round_block(const float* x, int64_t block, int32_t* pairs, float* factors) {
  HWY_ALIGN int32_t q[32];
  factors[0] = round16(x, block, q);
  int32_t sum = 0;
  for (int64_t i = 0; i < block; i += 8, pairs += 4 * M) {
    for (int64_t j = i; j < i + 4; ++j) {
      sum += q[j] + q[j + 4];
      pairs[(j - i) * M] = static_cast<int32_t>((q[j] & 0xFFFF) | static_cast<uint32_t>(q[j + 4]) << 16);
    }
  }
  factors[M] = static_cast<float>(sum);
}

// Rows beyond x.rows() are zero.
template <size_t M>
Rows16<M> round_rows(const Context& ctx, const Tensor& x, const Packed& w, int64_t groups) {
  Rows16<M> rows{nullptr, w.cols, dot16_block(w)};
  float* data = ctx.scratch.shared(groups * rows.size());
  rows.data = data;
  const int64_t block = rows.block, count = static_cast<int64_t>(M);
  ctx.pool.parallel_for(w.cols / block, (1 << 11) / (count * groups) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = 0; m < count * groups; ++m) {
      int32_t* pairs = reinterpret_cast<int32_t*>(data + m / count * rows.size()) + m % count;
      float* factors = data + m / count * rows.size() + count * w.cols / 2 + m % count;
      for (int64_t b = begin; b < end; ++b) {
        int32_t* to = pairs + b * block / 2 * count;
        if (m < x.rows()) {
          round_block<M>(x.row<float>(m) + b * block, block, to, factors + 2 * b * count);
          continue;
        }
        for (int64_t i = 0; i < block / 2; ++i) to[i * count] = 0;
        factors[2 * b * count] = factors[(2 * b + 1) * count] = 0;
      }
    }
  });
  return rows;
}

// Vectors of outputs side by side for M rows: as many as fit in registers together with the sums, the codes and x.
template <size_t M>
constexpr size_t dot16_vectors() {
  return std::min<size_t>(kPanel / kLanes, kLanes >= 16 ? 2 : M == 1 ? 4 : M <= 4 ? 2 : 1);
}

// Columns first .. first + depth - 1 of a panel: c [M, U vectors] (+)= group `g` of rows, for the outputs from `lane`.
template <class Codes, size_t M>
HWY_INLINE void dot16(const Packed& w, const uint8_t* panel, size_t lane, int64_t first, int64_t depth,
                      const Rows16<M>& rows, int64_t g, float* c, int64_t ldc) {
  const DF d;
  constexpr size_t U = dot16_vectors<M>();
  const int32_t* x = rows.pairs(g) + first / 2 * static_cast<int64_t>(M);
  const float* factors = rows.factors(g) + first / rows.block * 2 * static_cast<int64_t>(M);
  VF acc[M * U];
  const auto output = [&](auto i) GEMMA4_INLINE { return c + i / U * ldc + lane + i % U * kLanes; };
  unroll<M * U>([&](auto i) GEMMA4_INLINE { acc[i] = first > 0 ? hn::LoadU(d, output(i)) : hn::Zero(d); });
  for (int64_t k = first; k < first + depth;) {
    const uint8_t* group = panel + k / w.group * w.group_bytes;
    const int64_t begin = k % w.group, end = std::min(w.group, begin + first + depth - k);
    for (int64_t i = begin; i < end; i += rows.block, factors += 2 * M) {
      Sum sum[M * U];
      unroll<M * U>([&](auto u) GEMMA4_INLINE { sum[u] = zero_sum(); });
      const uint8_t* codes = Codes::codes(w, group, i);
      for (int64_t n = 0; n < rows.block / 8; ++n, codes += 4 * kPanel, x += 4 * M) {
        hn::Vec<DU> word[U];
        hwy::Prefetch(codes + kAhead);
        hwy::Prefetch(codes + kAhead + 64);
        unroll<U>([&](auto u) GEMMA4_INLINE {
          word[u] = hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(codes) + lane + u * kLanes);
        });
        unroll<4>([&](auto j) GEMMA4_INLINE {
          VI pair[U];
          unroll<U>([&](auto u) GEMMA4_INLINE { pair[u] = code_pair<j>(word[u]); });
          unroll<M>([&](auto m) GEMMA4_INLINE {
            const VI xm = hn::Set(DI(), x[j * M + m]);
            unroll<U>([&](auto u) GEMMA4_INLINE { sum[m * U + u] = dot2<Codes::kVnni>(sum[m * U + u], pair[u], xm); });
          });
        });
      }
      unroll<U>([&](auto u) GEMMA4_INLINE {
        const auto scales = Codes::scales(w, group, i, lane + u * kLanes);
        unroll<M>([&](auto m) GEMMA4_INLINE {
          VF& to = acc[m * U + u];
          const VF product = hn::Mul(hn::ConvertTo(d, total(sum[m * U + u])), scales.scale);
          to = hn::MulAdd(hn::Set(d, factors[m]), hn::MulAdd(hn::Set(d, factors[M + m]), scales.offset, product), to);
        });
      });
    }
    k += end - begin;
  }
  unroll<M * U>([&](auto i) GEMMA4_INLINE { hn::StoreU(acc[i], d, output(i)); });
}

// The same for a whole panel. It writes straight to the output, or through a buffer if rows or outputs are missing at
// the edge.
template <class Codes, size_t M>
HWY_NOINLINE void dot16_panel(const Packed& w, int64_t i, int64_t first, int64_t depth, const Rows16<M>& rows,
                              int64_t g, const Tensor& out) {
  const int64_t outputs = std::min(kPanel, w.rows - i * kPanel), row = g * static_cast<int64_t>(M);
  const int64_t count = std::min<int64_t>(M, out.rows() - row);
  HWY_ALIGN float edge[M * kPanel];
  const bool whole = outputs == kPanel && count == static_cast<int64_t>(M);
  float* c = whole ? out.row<float>(row) + i * kPanel : edge;
  const auto output = [&](int64_t m) { return out.row<float>(row + m) + i * kPanel; };
  for (int64_t m = 0; m < count && !whole && first > 0; ++m) {
    std::memcpy(edge + m * kPanel, output(m), outputs * sizeof(float));
  }
  for (size_t lane = 0; lane < kPanel; lane += dot16_vectors<M>() * kLanes) {
    dot16<Codes, M>(w, w.panel(i), lane, first, depth, rows, g, c, whole ? out.stride : kPanel);
  }
  for (int64_t m = 0; m < count && !whole; ++m) std::memcpy(output(m), edge + m * kPanel, outputs * sizeof(float));
}

// kPieceCols: columns of a panel that are multiplied by all rows while they are in L1 (9 KiB of int4 with scales).
// kPassingBytes: bytes of x that are read for each panel. A larger x is cut by columns, and the panels are read in
// pieces.
constexpr int64_t kPieceCols = 512;
constexpr int64_t kPassingBytes = 256 << 10;

template <class Codes, size_t M>
void dot16_rows(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  const int64_t groups = (x.rows() + static_cast<int64_t>(M) - 1) / static_cast<int64_t>(M);
  const Rows16<M> rows = round_rows<M>(ctx, x, w, groups);
  const bool once = groups == 1 && dot16_vectors<M>() * kLanes == kPanel;  // each byte of a panel is read once
  const int64_t piece = once ? w.cols : kPieceCols;
  int64_t pass = w.cols;
  if (x.rows() * w.cols * 2 > kPassingBytes) {
    pass = std::max<int64_t>(1, kPassingBytes / (2 * x.rows() * kPieceCols)) * kPieceCols;
  }
  const int64_t panels = task_panels(ctx, w, 8);
  for (int64_t first = 0; first < w.cols; first += pass) {
    const int64_t end = std::min(w.cols, first + pass);
    ctx.pool.parallel_tasks((w.panels + panels - 1) / panels, [&](int, int64_t task) {
      for (int64_t i = task * panels; i < std::min(w.panels, (task + 1) * panels); ++i) {
        for (int64_t k = first; k < end; k += piece) {
          for (int64_t g = 0; g < groups; ++g) dot16_panel<Codes, M>(w, i, k, std::min(piece, end - k), rows, g, out);
        }
      }
    });
  }
}

// Splits rows into groups of nearly equal size. On the targets of current processors there is a kernel for each size;
// elsewhere there are three, and rows are padded to the next size.
template <class Codes>
void dot16_groups(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  constexpr int64_t kMost = kLanes >= 16 ? 12 : 8;
  constexpr bool kEachSize = !kFewKernels && (Codes::kVnni || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_NEON);
  const int64_t groups = (x.rows() + kMost - 1) / kMost, rows = (x.rows() + groups - 1) / groups;
  if (rows == 1) return dot16_rows<Codes, 1>(ctx, out, x, w);
  if constexpr (kEachSize) {
    if (rows == 2) return dot16_rows<Codes, 2>(ctx, out, x, w);
  }
  if (rows <= 4) return dot16_rows<Codes, 4>(ctx, out, x, w);
  if constexpr (kEachSize) {
    if (rows <= 6) return dot16_rows<Codes, 6>(ctx, out, x, w);
    if (kMost > 8 && rows <= 8) return dot16_rows<Codes, 8>(ctx, out, x, w);
  }
  return dot16_rows<Codes, kMost>(ctx, out, x, w);
}

// Columns first .. first + depth - 1 of a panel as pairs of bf16 [depth / 2, 32] (bf16_tiles.h).
template <class Codes>
void codes_to_bf16(const Packed& w, int64_t panel, int64_t first, int64_t depth, uint32_t* to) {
  const int64_t block = dot16_block(w);
  for (int64_t k = first; k < first + depth;) {
    const uint8_t* group = w.panel(panel) + k / w.group * w.group_bytes;
    const int64_t begin = k % w.group, end = std::min(w.group, begin + first + depth - k);
    for (int64_t i = begin; i < end; i += block, to += block / 2 * kPanel) {
      const uint8_t* codes = Codes::codes(w, group, i);
      for (size_t lane = 0; lane < kPanel; lane += kLanes) {
        const auto scales = Codes::scales(w, group, i, lane);
        for (int64_t n = 0; n < block / 8; ++n) {
          const auto word = hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(codes) + n * kPanel + lane);
          unroll<4>([&](auto j) GEMMA4_INLINE {
            const VF even = code_to_float(hn::ShiftRight<8 * static_cast<int>(j)>(word));
            const VF odd = code_to_float(hn::ShiftRight<8 * static_cast<int>(j) + 4>(word));
            hn::StoreU(
                bf16_pair(hn::MulAdd(even, scales.scale, scales.offset), hn::MulAdd(odd, scales.scale, scales.offset)),
                DU(), to + (n * 4 + static_cast<int64_t>(j)) * kPanel + lane);
          });
        }
      }
    }
    k += end - begin;
  }
}

template <class Codes, bool kUse>
struct Vnni : Codes {
  static constexpr bool kVnni = kUse;
};

template <class Codes>
void linear_dot16(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  if (__builtin_cpu_supports("avx512vnni")) return dot16_groups<Vnni<Codes, true>>(ctx, out, x, w);
#endif
  dot16_groups<Vnni<Codes, false>>(ctx, out, x, w);
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
