// Int8 weights, a scale for each row or for each group of columns of a row.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/linear_int8.cc"  // NOLINT
#include "hwy/foreach_target.h"                          // IWYU pragma: keep

#include "backend/cpu/linear-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {
namespace {

template <class Scale>
struct Int8 {
  static constexpr int64_t kStep = 1;
  using Raw = VF;
  struct Group {
    VF scale;
  };
  static HWY_INLINE Group group(const uint8_t* at, size_t lane) { return {load_as_float(at, lane, Scale())}; }
  static HWY_INLINE Raw load(const uint8_t* codes, int64_t k, size_t lane) {
    const hn::Rebind<int8_t, DF> d8;
    const auto code = hn::LoadU(d8, reinterpret_cast<const int8_t*>(codes) + k * kPanel + lane);
    return hn::ConvertTo(DF(), hn::PromoteTo(DI(), code));
  }
  static HWY_INLINE void prefetch(const uint8_t* codes, int64_t k) { hwy::Prefetch(codes + k * kPanel + kAhead); }
  template <size_t J>
  static HWY_INLINE VF decode(Raw raw, const Group& group) {
    return hn::Mul(raw, group.scale);
  }
};

}  // namespace

void Linear8(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  if (w.scale_type == DType::kBF16) return linear_rows<Int8<hwy::bfloat16_t>>(ctx, out, x, w);
  if (w.scale_type == DType::kF16) return linear_rows<Int8<hwy::float16_t>>(ctx, out, x, w);
  return linear_rows<Int8<float>>(ctx, out, x, w);
}

void Bf16Of8(const Packed& w, int64_t panel, int64_t first, int64_t depth, uint32_t* to) {
  if (w.scale_type == DType::kBF16) return decode_bf16<Int8<hwy::bfloat16_t>>(w, panel, first, depth, to);
  if (w.scale_type == DType::kF16) return decode_bf16<Int8<hwy::float16_t>>(w, panel, first, depth, to);
  decode_bf16<Int8<float>>(w, panel, first, depth, to);
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {
HWY_EXPORT(Linear8);
HWY_EXPORT(Bf16Of8);
void linear_int8(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  HWY_DYNAMIC_DISPATCH(Linear8)(ctx, out, x, w);
}
void int8_to_bf16(const Packed& w, int64_t panel, int64_t first, int64_t depth, uint32_t* to) {
  HWY_DYNAMIC_DISPATCH(Bf16Of8)(w, panel, first, depth, to);
}
}  // namespace gemma4::cpu
#endif
