// A transformer layer of Gemma 4, written once for both towers: the same sandwich norms, per-head norms, rotary
// embedding, attention over intervals and gated MLP. The text decoder and the vision tower differ only in sizes, in
// their rope, in what a row may see and in the layer scalar.
#pragma once

#include "backend/backend.h"
#include "model/weights.h"

namespace gemma4 {

// Working memory of one pass, allocated once for the most rows there can be.
struct Activations {
  Activations slice(int64_t rows) const;  // the first of them

  Tensor x;        // [rows, hidden] residual stream
  Tensor h;        // [rows, hidden] normed
  Tensor y;        // [rows, hidden] output of a block
  Tensor qkv;      // [rows, widest q + k + v]
  Tensor query;    // [rows, widest q] queries, where their type is not that of qkv; else empty: q becomes the queries
  Tensor values;   // [rows, widest kv] V where it is made from K
  Tensor o;        // [rows, widest q]
  Tensor gate_up;  // [rows, 2 * intermediate]
  Tensor act;      // [rows, intermediate]
};

struct LayerShape {
  int64_t heads, kv_heads, head_dim;  // of this rank
  bool has_v;
};

struct LayerInput {
  LayerShape shape;
  Tensor pos;  // I32 [rows, axes]
  const Rope* rope;
  const KvCache* kv;
  const Rows* rows;
  float eps;
};

// a.h as the q, k, v product of a layer takes it: of Backend::gemm_input_type() where the product is kept in a wider
// type.
Tensor attention_input(Backend& be, const Activations& a, const LayerWeights& w);

// On entry attention_input(w) = norm(a.x) * w.input_norm; on return a.x is the layer's output and the same holds for
// `next` (where given).
void run_layer(Backend& be, const Activations& a, const LayerWeights& w, const LayerInput& in,
               const LayerWeights* next);

}  // namespace gemma4
