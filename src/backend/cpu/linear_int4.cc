// Int4 weights: lanes hold eight codes each, and column k of eight is a shift away. AVX-512 turns a code into a float
// with one look-up (linear-inl.h), so shift, look-up and one multiply-add decode 16 weights.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/linear_int4.cc"  // NOLINT
#include "hwy/foreach_target.h"                          // IWYU pragma: keep

#include "backend/cpu/linear-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {
namespace {

template <class Scale>
struct Int4 {
  static constexpr int64_t kStep = 8;
  using Raw = hn::Vec<DU>;
  struct Group {
    VF scale, offset;  // w = code * scale + offset; offset = -zero * scale is exact for 8-bit mantissas
  };
  static HWY_INLINE Group group(const uint8_t* at, size_t lane) {
    const VF scale = load_as_float(at, lane, Scale());
    const VF zero = load_as_float(at, kPanel + lane, Scale());
    return {scale, hn::Neg(hn::Mul(zero, scale))};
  }
  static HWY_INLINE Raw load(const uint8_t* codes, int64_t k, size_t lane) {
    return hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(codes) + k / 8 * kPanel + lane);
  }
  static HWY_INLINE void prefetch(const uint8_t* codes, int64_t k) {
    hwy::Prefetch(codes + k / 2 * kPanel + kAhead);
    hwy::Prefetch(codes + k / 2 * kPanel + kAhead + 64);
  }
  template <size_t J>
  static HWY_INLINE VF decode(Raw raw, const Group& group) {
    if constexpr (J == 0) return hn::MulAdd(code_to_float(raw), group.scale, group.offset);
    return hn::MulAdd(code_to_float(hn::ShiftRight<4 * static_cast<int>(J)>(raw)), group.scale, group.offset);
  }
};

}  // namespace

void Linear4(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  if (w.scale_type == DType::kBF16) return linear_rows<Int4<hwy::bfloat16_t>>(ctx, out, x, w);
  return linear_rows<Int4<hwy::float16_t>>(ctx, out, x, w);
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {
HWY_EXPORT(Linear4);
void linear_int4(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  HWY_DYNAMIC_DISPATCH(Linear4)(ctx, out, x, w);
}
}  // namespace gemma4::cpu
#endif
