// Weights stored as bfloat16, float16 or float32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/linear_float.cc"  // NOLINT
#include "hwy/foreach_target.h"                           // IWYU pragma: keep

#include "backend/cpu/linear-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {
namespace {

struct NoGroup {};

struct BFloat16 {  // two columns to a lane
  static constexpr int64_t kStep = 2;
  using Group = NoGroup;
  using Raw = hn::Vec<DU>;
  static HWY_INLINE Group group(const uint8_t*, size_t) { return {}; }
  static HWY_INLINE Raw load(const uint8_t* codes, int64_t k, size_t lane) {
    return hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(codes) + k / 2 * kPanel + lane);
  }
  static HWY_INLINE void prefetch(const uint8_t* codes, int64_t k) {
    hwy::Prefetch(codes + k * kPanel * 2 + kAhead);
    hwy::Prefetch(codes + k * kPanel * 2 + kAhead + 64);
  }
  template <size_t J>
  static HWY_INLINE VF decode(Raw raw, Group) {
    if constexpr (J == 0) return hn::BitCast(DF(), hn::ShiftLeft<16>(raw));
    return hn::BitCast(DF(), hn::And(raw, hn::Set(DU(), 0xffff0000u)));
  }
};

template <class Element>
struct Plain {  // float or hwy::float16_t
  static constexpr int64_t kStep = 1;
  using Group = NoGroup;
  using Raw = VF;
  static HWY_INLINE Group group(const uint8_t*, size_t) { return {}; }
  static HWY_INLINE Raw load(const uint8_t* codes, int64_t k, size_t lane) {
    return load_as_float(codes, k * kPanel + lane, Element());
  }
  static HWY_INLINE void prefetch(const uint8_t* codes, int64_t k) {
    for (size_t line = 0; line < kPanel * sizeof(Element); line += 64) {
      hwy::Prefetch(codes + k * kPanel * sizeof(Element) + kAhead + line);
    }
  }
  template <size_t J>
  static HWY_INLINE VF decode(Raw raw, Group) {
    return raw;
  }
};

}  // namespace

void LinearFloat(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  if (w.layout == Layout::kBF16) return linear_rows<BFloat16, true>(ctx, out, x, w);
  if (w.layout == Layout::kF16) return linear_rows<Plain<hwy::float16_t>, true>(ctx, out, x, w);
  return linear_rows<Plain<float>, true>(ctx, out, x, w);
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {
HWY_EXPORT(LinearFloat);
void linear_float(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  HWY_DYNAMIC_DISPATCH(LinearFloat)(ctx, out, x, w);
}
}  // namespace gemma4::cpu
#endif
