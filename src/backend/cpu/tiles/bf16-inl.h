// Rounding to bf16 for the matrix units (bf16_tiles.h). Included once for each SIMD target.
#if defined(GEMMA4_CPU_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GEMMA4_CPU_BF16_INL_H_
#undef GEMMA4_CPU_BF16_INL_H_
#else
#define GEMMA4_CPU_BF16_INL_H_
#endif

#include "backend/cpu/simd-inl.h"
#include "base/bf16.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {

using DU16 = hn::Rebind<uint16_t, DF>;

// Floats whose low halves are zero: v rounded to the nearest bf16, ties to even; what is not a number stays none.
HWY_INLINE VF round_to_bf16(VF v) {
  const DU du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fff)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000));
  const auto kept = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, rounded);
  return hn::BitCast(DF(), hn::And(kept, hn::Set(du, 0xffff0000u)));
}

HWY_INLINE void store_bf16(VF rounded, uint16_t* to) {
  hn::StoreU(hn::DemoteTo(DU16(), hn::BitCast(DI(), hn::ShiftRight<16>(hn::BitCast(DU(), rounded)))), DU16(), to);
}

// high = x as bf16; low = what that leaves of x, as bf16, where it is asked for: together 16 bits of mantissa.
HWY_INLINE void split_to_bf16(const float* x, int64_t n, uint16_t* high, uint16_t* low) {
  const DF d;
  int64_t i = 0;
  for (; i + static_cast<int64_t>(kLanes) <= n; i += kLanes) {
    const VF v = hn::LoadU(d, x + i), h = round_to_bf16(v);
    store_bf16(h, high + i);
    if (low != nullptr) store_bf16(round_to_bf16(hn::Sub(v, h)), low + i);
  }
  for (; i < n; ++i) {
    high[i] = float_to_bf16(x[i]);
    if (low != nullptr) low[i] = float_to_bf16(x[i] - bf16_to_float(high[i]));
  }
}

// Two floats whose low halves are zero as a pair of bf16: the even column in the low half.
HWY_INLINE hn::Vec<DU> pair_of(VF even, VF odd) {
  const DU du;
  return hn::Or(hn::ShiftRight<16>(hn::BitCast(du, even)), hn::BitCast(du, odd));
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
