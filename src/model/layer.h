// A transformer layer of Gemma 4, for both towers: sandwich norms, QK norm, RoPE, attention over intervals of keys and
// a gated MLP. The text decoder and the vision tower differ only in sizes, RoPE, the intervals and the layer scalar.
#pragma once

#include <span>

#include "backend/backend.h"
#include "model/owned_tensors.h"
#include "model/weights.h"

namespace gemma4 {

// Buffers of one forward pass, allocated once for the largest number of rows.
struct Activations {
  Activations slice(int64_t begin, int64_t rows) const;  // rows begin .. begin + rows - 1 of each

  Tensor x;        // [rows, hidden] residual stream
  Tensor h;        // [rows, hidden] normed
  Tensor y;        // [rows, hidden] output of a block
  Tensor qkv;      // [rows, widest q + k + v]
  Tensor query;    // [rows, widest q] queries, if their type is not that of qkv; else empty, and q holds them
  Tensor values;   // [rows, widest kv] V, if it is made from K
  Tensor o;        // [rows, widest q]
  Tensor gate_up;  // [rows, 2 * intermediate]
  Tensor act;      // [rows, intermediate]
};

// Of those of a text decoder. `layers`: the layers that will use them, at least one.
struct ActivationSizes {
  int64_t rows = 0, hidden = 0, intermediate = 0;
  int64_t q = 0, kv = 0, qkv = 0;  // widest of all layers
};
Activations alloc_activations(Backend& be, OwnedTensors& owned, const ActivationSizes& sizes,
                              std::span<const LayerWeights> layers);

struct LayerShape {
  int64_t heads, kv_heads, head_dim;  // of this rank; no KV heads: the layer only reads the cache (a drafter's)
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

// a.h as the input of a layer's q, k, v projection. It has Backend::gemm_input_type() if the output of the projection
// has a wider type than activations.
Tensor attention_input(Backend& be, const Activations& a, const LayerWeights& w);

// On entry attention_input(w) = norm(a.x) * w.input_norm; on return a.x is the layer's output and the same holds for
// `next` (where given).
void run_layer(Backend& be, const Activations& a, const LayerWeights& w, const LayerInput& in,
               const LayerWeights* next);

// Its two halves, for callers that compute a layer in several parts. The first makes queries and writes keys and values
// to the cache; the second may run for some rows once the first has run for all rows that these attend to.
void run_attention_input(Backend& be, const Activations& a, const LayerWeights& w, const LayerInput& in);
void run_attention_and_mlp(Backend& be, const Activations& a, const LayerWeights& w, const LayerInput& in,
                           const LayerWeights* next);

}  // namespace gemma4
