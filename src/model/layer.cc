#include "model/layer.h"

#include <algorithm>

namespace gemma4 {
namespace {

void linear_fused(Backend& be, Tensor out, Tensor x, const FusedLinear& w) {
  for (const FusedLinear::Slice& slice : w.slices) {
    be.linear(out.columns(slice.begin, slice.weight.rows), x, slice.weight);
  }
}

// Views of the buffers as this layer uses them.
struct LayerViews {
  LayerViews(const Activations& a, const LayerWeights& w, const LayerShape& s) {
    const int64_t q_width = s.heads * s.head_dim, kv_width = s.kv_heads * s.head_dim;
    qkv = a.qkv.columns(0, w.qkv.rows);
    q = qkv.columns(0, q_width).split(s.heads, s.head_dim);
    if (s.kv_heads > 0) k = qkv.columns(q_width, kv_width).split(s.kv_heads, s.head_dim);
    if (s.has_v) v = qkv.columns(q_width + kv_width, kv_width).split(s.kv_heads, s.head_dim);
    query = a.query ? a.query.columns(0, q_width).split(s.heads, s.head_dim) : q;
    if (s.kv_heads > 0) values = a.values.columns(0, kv_width).split(s.kv_heads, s.head_dim);
    o = a.o.columns(0, q_width);
  }
  Tensor qkv, q, k, v, query, values, o;
};

}  // namespace

Activations Activations::slice(int64_t begin, int64_t rows) const {
  Activations a = *this;
  for (Tensor* t : {&a.x, &a.h, &a.y, &a.qkv, &a.query, &a.values, &a.o, &a.gate_up, &a.act}) {
    if (*t) *t = t->slice(begin, rows);
  }
  return a;
}

Activations alloc_activations(Backend& be, OwnedTensors& owned, const ActivationSizes& s,
                              std::span<const LayerWeights> layers) {
  const DType act = be.activation_type(), product = be.gemm_output_type(), query = be.attention_type();
  const bool wide_mlp = std::ranges::any_of(
      layers, [&](const LayerWeights& w) { return be.gemm_input_type(w.gate_up.slices[0].weight) != act; });
  Activations a;
  a.x = owned.alloc(be.residual_type(), {s.rows, s.hidden});
  a.h = owned.alloc(act, {s.rows, s.hidden});
  a.y = owned.alloc(product, {s.rows, s.hidden});
  a.qkv = owned.alloc(product, {s.rows, s.qkv});
  if (query != product) a.query = owned.alloc(query, {s.rows, s.q});
  if (s.kv > 0) a.values = owned.alloc(product, {s.rows, s.kv});
  a.o = owned.alloc(act, {s.rows, s.q});
  a.gate_up = owned.alloc(wide_mlp ? product : act, {s.rows, 2 * s.intermediate});
  a.act = owned.alloc(act, {s.rows, s.intermediate});
  return a;
}

Tensor attention_input(Backend& be, const Activations& a, const LayerWeights& w) {
  Tensor h = a.h;
  if (a.qkv.dtype == a.h.dtype) return h;
  const DType type = be.gemm_input_type(w.qkv.slices[0].weight);
  const auto takes = [&](const FusedLinear::Slice& slice) { return be.gemm_input_type(slice.weight) == type; };
  if (dtype_size(type) == dtype_size(h.dtype) && std::ranges::all_of(w.qkv.slices, takes)) h.dtype = type;
  return h;
}

void run_attention_input(Backend& be, const Activations& a, const LayerWeights& w, const LayerInput& in) {
  const LayerViews t(a, w, in.shape);
  linear_fused(be, t.qkv, attention_input(be, a, w), w.qkv);
  if (in.shape.kv_heads == 0) {
    be.rms_norm(t.query, t.q, w.q_norm, in.eps);
    be.rope(t.query, in.pos, *in.rope);
    return;
  }
  be.qk_norm_rope_cache(t.query, t.q, t.k, t.v, t.values, {w.q_norm, w.k_norm, in.eps}, in.pos, *in.rope, *in.kv,
                        *in.rows);
}

void run_attention_and_mlp(Backend& be, const Activations& a, const LayerWeights& w, const LayerInput& in,
                           const LayerWeights* next) {
  const LayerViews t(a, w, in.shape);
  be.attention(t.o.split(in.shape.heads, in.shape.head_dim), t.query, *in.kv, *in.rows);
  be.linear(a.y, t.o, w.o);
  if (w.partial_sums) be.all_reduce(a.y);
  be.add_rms_norm(a.h, a.x, a.y, w.post_attention_norm, 1.0f, w.pre_feedforward_norm, in.eps);

  if (w.gate_up.slices.size() == 1) {
    be.linear_geglu(a.act, a.h, w.gate_up.slices[0].weight, a.gate_up);
  } else {
    linear_fused(be, a.gate_up, a.h, w.gate_up);
    be.geglu(a.act, a.gate_up);
  }
  be.linear(a.y, a.act, w.down);
  if (w.partial_sums) be.all_reduce(a.y);
  be.add_rms_norm(next ? attention_input(be, a, *next) : Tensor(), a.x, a.y, w.post_feedforward_norm, w.scalar,
                  next ? next->input_norm : Tensor(), in.eps);
}

void run_layer(Backend& be, const Activations& a, const LayerWeights& w, const LayerInput& in,
               const LayerWeights* next) {
  run_attention_input(be, a, w, in);
  run_attention_and_mlp(be, a, w, in, next);
}

}  // namespace gemma4
