// RMSNorm, pooling and the ops that touch each element once. Memory bandwidth bounds all of them. The one row of a
// decode step is too short to be split, so only long calls wake the thread pool.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/elementwise.cc"  // NOLINT
#include "hwy/foreach_target.h"                          // IWYU pragma: keep

#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements worth a thread: about 5 us

template <class F>
void each_row(const Context& ctx, const Tensor& x, F&& f) {
  ctx.pool.parallel_for(x.rows(), std::max<int64_t>(1, kGrain / std::max<int64_t>(1, x.row_size())),
                        [&](int64_t begin, int64_t end) {
                          for (int64_t i = begin; i < end; ++i) f(i);
                        });
}

// gelu_tanh(x) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3): tanh written out, so one exp and no
// cancellation.
HWY_INLINE VF gelu_tanh(VF x) {
  const DF d;
  constexpr float kTwoSqrt2OverPi = 1.5957691216057308f;
  const VF cubic = hn::MulAdd(hn::Mul(hn::Set(d, 0.044715f), x), hn::Mul(x, x), x);
  // Past 88.8 exp is infinite and the quotient 0, as it should be; Exp() knows arguments up to 104.
  const VF t = hn::Min(hn::Mul(hn::Set(d, -kTwoSqrt2OverPi), cubic), hn::Set(d, 100.0f));
  return hn::Div(x, hn::Add(hn::Set(d, 1.0f), hn::Exp(d, t)));
}

}  // namespace

void RmsNorm(const Context& ctx, const Tensor& out, const Tensor& x, const float* weight, float eps) {
  const size_t n = x.shape[x.rank - 1];
  const DF d;
  each_row(ctx, x, [&](int64_t row) HWY_ATTR {
    for (int64_t at = 0; at < x.row_size(); at += n) {
      const float* from = x.row<float>(row) + at;
      float* to = out.row<float>(row) + at;
      const float squares = sum(n, from, [](VF acc, VF v) GEMMA4_INLINE { return hn::MulAdd(v, v, acc); });
      const VF scale = hn::Set(d, 1.0f / std::sqrt(squares / static_cast<float>(n) + eps));
      if (weight != nullptr) {
        map(
            n, to, [&](VF v, VF w) GEMMA4_INLINE { return hn::Mul(hn::Mul(v, scale), w); }, from, weight);
      } else {
        map(
            n, to, [&](VF v) GEMMA4_INLINE { return hn::Mul(v, scale); }, from);
      }
    }
  });
}

void Add(const Context& ctx, const Tensor& x, const Tensor& y, float scale) {
  const VF by = hn::Set(DF(), scale);
  each_row(ctx, x, [&](int64_t row) HWY_ATTR {
    float* to = x.row<float>(row);
    map(
        x.row_size(), to, [&](VF a, VF b) GEMMA4_INLINE { return hn::Mul(hn::Add(a, b), by); }, to, y.row<float>(row));
  });
}

void Geglu(const Context& ctx, const Tensor& out, const Tensor& gate_up) {
  const size_t n = out.row_size();
  each_row(ctx, gate_up, [&](int64_t row) HWY_ATTR {
    const float* gate = gate_up.row<float>(row);
    map(
        n, out.row<float>(row), [](VF g, VF u) GEMMA4_INLINE { return hn::Mul(gelu_tanh(g), u); }, gate, gate + n);
  });
}

void Affine(const Context& ctx, const Tensor& x, const float* bias, const float* scale) {
  each_row(ctx, x, [&](int64_t row) HWY_ATTR {
    float* to = x.row<float>(row);
    map(
        x.row_size(), to, [](VF v, VF b, VF s) GEMMA4_INLINE { return hn::Mul(hn::Sub(v, b), s); }, to, bias, scale);
  });
}

void Softcap(const Context& ctx, const Tensor& x, float cap) {
  const DF d;
  const VF by = hn::Set(d, cap), over = hn::Set(d, cap);
  // A row of logits is as long as the vocabulary: split within rows.
  const int64_t n = x.row_size();
  for (int64_t row = 0; row < x.rows(); ++row) {
    ctx.pool.parallel_for(n, kGrain, [&](int64_t begin, int64_t end) HWY_ATTR {
      float* to = x.row<float>(row) + begin;
      map(
          end - begin, to, [&](VF v) GEMMA4_INLINE { return hn::Mul(hn::Tanh(d, hn::Div(v, over)), by); }, to);
    });
  }
}

void Pool(const Context& ctx, const Tensor& out, const Tensor& x, const int32_t* group, float scale) {
  const VF by = hn::Set(DF(), scale);
  const int64_t n = x.row_size();
  ctx.pool.parallel_for(n, 256, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t row = 0; row < out.rows(); ++row) {
      std::fill(out.row<float>(row) + begin, out.row<float>(row) + end, 0.0f);
    }
    for (int64_t row = 0; row < x.rows(); ++row) {
      float* to = out.row<float>(group[row]) + begin;
      map(
          end - begin, to, [&](VF v, VF a) GEMMA4_INLINE { return hn::MulAdd(v, by, a); }, x.row<float>(row) + begin,
          to);
    }
  });
}

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {

HWY_EXPORT(RmsNorm);
HWY_EXPORT(Add);
HWY_EXPORT(Geglu);
HWY_EXPORT(Affine);
HWY_EXPORT(Softcap);
HWY_EXPORT(Pool);

void CpuBackend::rms_norm(Tensor out, Tensor x, Tensor weight, float eps) {
  CHECK(is_f32(out) && is_f32(x) && out.rows() == x.rows() && out.row_size() == x.row_size());
  CHECK(!weight || (is_f32(weight) && weight.size() == x.shape[x.rank - 1]));
  HWY_DYNAMIC_DISPATCH(RmsNorm)(context(), out, x, static_cast<const float*>(weight.data), eps);
}

void CpuBackend::add(Tensor x, Tensor y, float scale) {
  CHECK(is_f32(x) && is_f32(y) && x.rows() == y.rows() && x.row_size() == y.row_size());
  HWY_DYNAMIC_DISPATCH(Add)(context(), x, y, scale);
}

void CpuBackend::geglu(Tensor out, Tensor gate_up) {
  CHECK(is_f32(out) && is_f32(gate_up) && out.rows() == gate_up.rows());
  CHECK(2 * out.row_size() == gate_up.row_size());
  HWY_DYNAMIC_DISPATCH(Geglu)(context(), out, gate_up);
}

void CpuBackend::pool(Tensor out, Tensor x, Tensor group, float scale) {
  CHECK(is_f32(out) && is_f32(x) && out.row_size() == x.row_size() && is_i32(group, x.rows()));
  const int32_t* groups = static_cast<const int32_t*>(group.data);
  for (int64_t i = 0; i < x.rows(); ++i) CHECK(groups[i] >= 0 && groups[i] < out.rows());
  HWY_DYNAMIC_DISPATCH(Pool)(context(), out, x, groups, scale);
}

void CpuBackend::affine(Tensor x, Tensor bias, Tensor scale) {
  CHECK(is_f32(x) && is_f32(bias) && is_f32(scale));
  CHECK(bias.size() == x.row_size() && scale.size() == x.row_size());
  HWY_DYNAMIC_DISPATCH(Affine)
  (context(), x, static_cast<const float*>(bias.data), static_cast<const float*>(scale.data));
}

void CpuBackend::softcap(Tensor x, float cap) {
  CHECK(is_f32(x) && cap > 0);
  HWY_DYNAMIC_DISPATCH(Softcap)(context(), x, cap);
}

}  // namespace gemma4::cpu
#endif
