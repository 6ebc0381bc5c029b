// RoPE. An angle is one float32 product, and its sine and cosine are one libm call each, as in the definition. They are
// computed once for a row and used by all its heads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/rope.cc"  // NOLINT
#include "hwy/foreach_target.h"                   // IWYU pragma: keep

#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {
namespace {

// cosines and sines [half] of one block.
void angles(const float* inv_freq, int64_t half, int32_t pos, float* cosines, float* sines) {
  for (int64_t i = 0; i < half; ++i) {
    const float angle = static_cast<float>(pos) * inv_freq[i];
    cosines[i] = angle == 0 ? 1.0f : std::cos(angle);
    sines[i] = angle == 0 ? 0.0f : std::sin(angle);
  }
}

HWY_INLINE void turn(float* low, float* high, const float* cosines, const float* sines, size_t half) {
  const DF d;
  size_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const VF a = hn::LoadU(d, low + i), b = hn::LoadU(d, high + i);
    const VF c = hn::LoadU(d, cosines + i), s = hn::LoadU(d, sines + i);
    hn::StoreU(hn::NegMulAdd(b, s, hn::Mul(a, c)), d, low + i);
    hn::StoreU(hn::MulAdd(a, s, hn::Mul(b, c)), d, high + i);
  }
  if (const size_t n = half - i; n > 0) {
    const VF a = load_n(low + i, n), b = load_n(high + i, n);
    const VF c = load_n(cosines + i, n), s = load_n(sines + i, n);
    store_n(hn::NegMulAdd(b, s, hn::Mul(a, c)), low + i, n);
    store_n(hn::MulAdd(a, s, hn::Mul(b, c)), high + i, n);
  }
}

}  // namespace

void RopeRows(const Context& ctx, const Tensor& x, const Tensor& pos, const Rope& rope) {
  const int64_t dim = x.shape[2], heads = x.shape[1], half = rope.block / 2, blocks = dim / rope.block;
  const float* inv_freq = static_cast<const float*>(rope.inv_freq.data);
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, x.row_size()));
  ctx.pool.parallel_for(x.rows(), grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    float table[2 * kMaxHeadDim];
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t b = 0; b < blocks; ++b) {
        float* cosines = table + b * 2 * half;
        angles(inv_freq, half, pos.row<int32_t>(row)[b], cosines, cosines + half);
        for (int64_t head = 0; head < heads; ++head) {
          float* low = x.row<float>(row) + head * dim + b * rope.block;
          turn(low, low + half, cosines, cosines + half, half);
        }
      }
    }
  });
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {

HWY_EXPORT(RopeRows);

void CpuBackend::rope(Tensor x, Tensor pos, const Rope& rope) {
  const int64_t dim = x.shape[2];
  CHECK(is_f32(x) && x.rank == 3 && dim <= kMaxHeadDim);
  CHECK(rope.block > 0 && rope.block % 2 == 0 && dim % rope.block == 0 && rope.inv_freq.size() == rope.block / 2);
  CHECK(is_i32(pos, x.rows() * (dim / rope.block)));
  HWY_DYNAMIC_DISPATCH(RopeRows)(context(), x, pos, rope);
}

}  // namespace gemma4::cpu
#endif
