// Int4 weights with a scale and a zero for each group: lanes hold eight codes each (linear_dot16-inl.h).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/linear_int4.cc"  // NOLINT
#include "hwy/foreach_target.h"                          // IWYU pragma: keep

#include "backend/cpu/linear_dot16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {
namespace {

struct Int4 {
  struct Scales {
    VF scale, offset;  // w = code * scale + offset; offset = -zero * scale is exact for 8-bit mantissas
  };
  static HWY_INLINE const uint8_t* codes(const Packed& w, const uint8_t* group, int64_t k) {
    return group + w.header_bytes + k / 2 * kPanel;
  }
  static HWY_INLINE Scales scales(const Packed& w, const uint8_t* group, int64_t, size_t lane) {
    const bool bf16 = w.scale_type == DType::kBF16;  // tested once for 32 columns; a kernel for each type is not faster
    const auto load = [&](size_t at) GEMMA4_INLINE {
      return bf16 ? load_as_float(group, at, hwy::bfloat16_t()) : load_as_float(group, at, hwy::float16_t());
    };
    const VF scale = load(lane), zero = load(kPanel + lane);
    return {scale, hn::Neg(hn::Mul(zero, scale))};
  }
};

}  // namespace

void Linear4(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  return linear_dot16<Int4>(ctx, out, x, w);
}

void Bf16Of4(const Packed& w, int64_t panel, int64_t first, int64_t depth, uint32_t* to) {
  codes_to_bf16<Int4>(w, panel, first, depth, to);
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {
HWY_EXPORT(Linear4);
HWY_EXPORT(Bf16Of4);
void linear_int4(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  HWY_DYNAMIC_DISPATCH(Linear4)(ctx, out, x, w);
}
void int4_to_bf16(const Packed& w, int64_t panel, int64_t first, int64_t depth, uint32_t* to) {
  HWY_DYNAMIC_DISPATCH(Bf16Of4)(w, panel, first, depth, to);
}
}  // namespace gemma4::cpu
#endif
