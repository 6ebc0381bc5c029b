// A transformer layer of Gemma 4, written once for both towers: the same sandwich norms, per-head norms, rotary
// embedding, attention over intervals and gated MLP. The text decoder and the vision tower differ only in sizes, in
// their rope, in what a row may see and in the layer scalar.
#pragma once

#include "backend/backend.h"
#include "model/weights.h"

namespace gemma4 {

// Working memory of one pass, allocated once for the most rows there can be.
struct Activations {
  Tensor x;        // [rows, hidden] residual stream
  Tensor h;        // [rows, hidden] normed
  Tensor y;        // [rows, hidden] output of a block
  Tensor qkv;      // [rows, widest q + k + v]
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
  const Kv* kv;
  const Rows* rows;
  float eps;
};

// On entry a.h = norm(a.x) * input_norm; on return a.x is the layer's output and a.h = norm(a.x) * next_norm (where
// given).
void run_layer(Backend& be, const Activations& a, const LayerWeights& w, const LayerInput& in, Tensor next_norm);

}  // namespace gemma4
