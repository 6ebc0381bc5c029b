// Helpers over Highway that the kernels share. Included once for each SIMD target.
#if defined(GEMMA4_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GEMMA4_CPU_SIMD_INL_H_
#undef GEMMA4_CPU_SIMD_INL_H_
#else
#define GEMMA4_CPU_SIMD_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "hwy/cache_control.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

// A lambda in a kernel needs the attributes of the SIMD target, and must be inlined into its caller.
#define GEMMA4_INLINE HWY_ATTR __attribute__((always_inline))

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using DI = hn::Rebind<int32_t, DF>;
using DU = hn::Rebind<uint32_t, DF>;
using VF = hn::Vec<DF>;
constexpr size_t kLanes = hn::MaxLanes(DF());
// Rows of the largest register tile of tile(): with two vectors of columns it fits in the registers.
constexpr size_t kTileRows = HWY_TARGET <= HWY_AVX3 ? 12 : 6;

// f(0), f(1), ... f(N - 1) with compile-time arguments.
template <size_t N, class F>
HWY_INLINE void unroll(F&& f) {
  [&]<size_t... I>(std::index_sequence<I...>) GEMMA4_INLINE { (f(std::integral_constant<size_t, I>()), ...); }
  (std::make_index_sequence<N>());
}

// Loads the first n < kLanes floats at `from`, with zeros after them; store_n() stores them. Neither touches memory
// beyond n.
HWY_INLINE VF load_n(const float* from, size_t n) {
  const DF d;
#if HWY_TARGET <= HWY_AVX2
  return hn::MaskedLoad(hn::FirstN(d, n), d, from);
#else
  HWY_ALIGN float lanes[kLanes] = {};
  std::memcpy(lanes, from, n * sizeof(float));
  return hn::Load(d, lanes);
#endif
}
HWY_INLINE void store_n(VF v, float* to, size_t n) {
  const DF d;
#if HWY_TARGET <= HWY_AVX2
  hn::BlendedStore(v, hn::FirstN(d, n), d, to);
#else
  HWY_ALIGN float lanes[kLanes];
  hn::Store(v, d, lanes);
  std::memcpy(to, lanes, n * sizeof(float));
#endif
}

// out[i] = f(in[i]...), i < n.
template <class F, class... In>
HWY_INLINE void map(size_t n, float* out, F&& f, const In*... in) {
  const DF d;
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(f(hn::LoadU(d, in + i)...), d, out + i);
  if (i < n) store_n(f(load_n(in + i, n - i)...), out + i, n - i);
}

// Folds in[i], i < n, into sums that start at 0: f(sum, in). Zeros fill the last vector. There are at least four
// chains, so that additions overlap. There are at least 16 sums for any vector length, which keeps rounding errors
// small.
template <class F>
HWY_INLINE float sum(size_t n, const float* in, F&& f) {
  const DF d;
  constexpr size_t kChains = kLanes >= 4 ? 4 : 16 / kLanes;
  VF acc[kChains];
  unroll<kChains>([&](auto j) GEMMA4_INLINE { acc[j] = hn::Zero(d); });
  size_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes) {
    unroll<kChains>([&](auto j) GEMMA4_INLINE { acc[j] = f(acc[j], hn::LoadU(d, in + i + j * kLanes)); });
  }
  for (; i + kLanes <= n; i += kLanes) acc[0] = f(acc[0], hn::LoadU(d, in + i));
  if (i < n) acc[0] = f(acc[0], load_n(in + i, n - i));
  for (size_t step = kChains / 2; step > 0; step /= 2) {
    for (size_t j = 0; j < step; ++j) acc[j] = hn::Add(acc[j], acc[j + step]);
  }
  return hn::GetLane(hn::SumOfLanes(d, acc[0]));
}

// c [MR, NV vectors] (+)= a [MR, depth] b [depth, NV vectors], where a(i, k) = a[i * kRow + k * kCol]. Each element is
// one chain of fused multiply-adds in ascending k, so results do not depend on how rows are grouped into tiles.
template <size_t MR, size_t NV, size_t kRow, size_t kCol>
HWY_INLINE void tile(size_t depth, const float* a, const float* b, size_t ldb, float* c, size_t ldc, bool accumulate) {
  const DF d;
  VF acc[MR * NV];
  unroll<MR * NV>([&](auto i) GEMMA4_INLINE {
    acc[i] = accumulate ? hn::LoadU(d, c + (i / NV) * ldc + (i % NV) * kLanes) : hn::Zero(d);
  });
  for (size_t k = 0; k < depth; ++k, a += kCol, b += ldb) {
    VF w[NV];
    unroll<NV>([&](auto v) GEMMA4_INLINE { w[v] = hn::LoadU(d, b + v * kLanes); });
    unroll<MR>([&](auto i) GEMMA4_INLINE {
      const VF x = hn::Set(d, a[i * kRow]);
      unroll<NV>([&](auto v) GEMMA4_INLINE { acc[i * NV + v] = hn::MulAdd(x, w[v], acc[i * NV + v]); });
    });
  }
  unroll<MR * NV>([&](auto i) GEMMA4_INLINE { hn::StoreU(acc[i], d, c + (i / NV) * ldc + (i % NV) * kLanes); });
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
