// ggml's Q4_K and Q6_K, at their size in the file: half-precision scales for 256 columns, small integer ones for 32 or
// 16.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/linear_kquants.cc"  // NOLINT
#include "hwy/foreach_target.h"                             // IWYU pragma: keep

#include "backend/cpu/linear_dot16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {
namespace {

template <class Byte>
HWY_INLINE VF byte_to_float(const uint8_t* at, size_t lane) {
  const hn::Rebind<Byte, DF> d8;
  return hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(d8, reinterpret_cast<const Byte*>(at) + lane)));
}

HWY_INLINE hn::Vec<DU> word(const uint8_t* at, int64_t i, size_t lane) {
  return hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(at) + i * kPanel + lane);
}

HWY_INLINE void prefetch_line(const uint8_t* at) { hwy::Prefetch(at + kAhead); }

struct Q4K {
  struct Scales {
    VF scale, offset;  // of 32 columns: w = code * scale + offset, both products exact
  };
  static HWY_INLINE const uint8_t* sub(const Packed& w, const uint8_t* group, int64_t k) {
    return group + w.header_bytes + k / 32 * kSub4K;
  }
  static HWY_INLINE const uint8_t* codes(const Packed& w, const uint8_t* group, int64_t k) {
    return sub(w, group, k) + 2 * kPanel;
  }
  static HWY_INLINE Scales scales(const Packed& w, const uint8_t* group, int64_t k, size_t lane) {
    const VF d = load_as_float(group, lane, hwy::float16_t());
    const VF least = load_as_float(group, kPanel + lane, hwy::float16_t());
    const uint8_t* whole = sub(w, group, k);
    return {hn::Mul(d, byte_to_float<uint8_t>(whole, lane)),
            hn::Neg(hn::Mul(least, byte_to_float<uint8_t>(whole + kPanel, lane)))};
  }
};

struct Q6K {
  static constexpr int64_t kStep = 16;
  struct Group {
    VF d;
  };
  struct Raw {
    hn::Vec<DU> low[2], high;
    VF scale;  // of 16 columns, an integer
  };
  static HWY_INLINE Group group(const uint8_t* at, size_t lane) { return {load_as_float(at, lane, hwy::float16_t())}; }
  static HWY_INLINE Raw load(const uint8_t* codes, int64_t k, size_t lane) {
    const uint8_t* sub = codes + k / 16 * kSub6K;
    return {{word(sub + kPanel, 0, lane), word(sub + kPanel, 1, lane)},
            word(sub + 9 * kPanel, 0, lane),
            byte_to_float<int8_t>(sub, lane)};
  }
  static HWY_INLINE void prefetch(const uint8_t* codes, int64_t k) {
    for (int64_t line = 0; line < kSub6K; line += 64) prefetch_line(codes + k / 16 * kSub6K + line);
  }
  // The high two bits of a column as 16 * bits - 32.
  static HWY_INLINE VF high_to_float(hn::Vec<DU> bits) {
#if HWY_TARGET <= HWY_AVX3
    const __m512 table = _mm512_setr_ps(-32, -16, 0, 16, -32, -16, 0, 16, -32, -16, 0, 16, -32, -16, 0, 16);
    return VF{_mm512_permutexvar_ps(bits.raw, table)};
#else
    const auto high = hn::ConvertTo(DF(), hn::BitCast(DI(), hn::And(bits, hn::Set(DU(), 3))));
    return hn::MulAdd(high, hn::Set(DF(), 16.0f), hn::Set(DF(), -32.0f));
#endif
  }
  template <size_t J>
  static HWY_INLINE VF decode(const Raw& raw, const Group& group) {
    const VF scale = hn::Mul(group.d, raw.scale);
    const VF low = code_to_float(hn::ShiftRight<4 * static_cast<int>(J % 8)>(raw.low[J / 8]));
    return hn::Mul(hn::Add(low, high_to_float(hn::ShiftRight<2 * static_cast<int>(J)>(raw.high))), scale);
  }
};

}  // namespace

void LinearK(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  if (w.layout == Layout::kQ4K) return linear_dot16<Q4K>(ctx, out, x, w);
  return linear_rows<Q6K>(ctx, out, x, w);
}

void Bf16OfK(const Packed& w, int64_t panel, int64_t first, int64_t depth, uint32_t* to) {
  if (w.layout == Layout::kQ4K) return codes_to_bf16<Q4K>(w, panel, first, depth, to);
  decode_bf16<Q6K>(w, panel, first, depth, to);
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {
HWY_EXPORT(LinearK);
HWY_EXPORT(Bf16OfK);
void linear_kquants(const Context& ctx, const Tensor& out, const Tensor& x, const Packed& w) {
  HWY_DYNAMIC_DISPATCH(LinearK)(ctx, out, x, w);
}
void kquants_to_bf16(const Packed& w, int64_t panel, int64_t first, int64_t depth, uint32_t* to) {
  HWY_DYNAMIC_DISPATCH(Bf16OfK)(w, panel, first, depth, to);
}
}  // namespace gemma4::cpu
#endif
