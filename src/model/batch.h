// Batch: the input of one forward pass, as flat arrays with one row for each token. Prompt tokens and generated tokens
// look the same.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace gemma4 {

struct Batch {
  std::vector<int32_t> ids;                // [rows]; at image rows: any id in range
  std::vector<Row> rows[kAttentionKinds];  // [rows] what each row may see, for each kind of layer
  std::vector<int32_t> image_index;        // [soft] rows replaced by image embeddings, ascending
  // [n, hidden] on the backend; their rows fill image_index in order.
  std::vector<Tensor> image_embeddings;
  std::vector<int32_t> logit_rows;      // [out] rows whose logits are wanted, ascending
  std::vector<SamplingInput> sampling;  // [out], or empty: no token is chosen

  void clear() { *this = Batch(); }
};

// Appends one token of sequence `seq` at position `pos`. `block_last`: last position of the image it lies in, or -1.
// Sliding layers: window AND (causal OR same image); full layers: causal.
inline void append_row(Batch& batch, const Config& config, int32_t id, int32_t seq, int32_t pos, int32_t block_last) {
  const int32_t first = pos - config.window + 1 > 0 ? pos - config.window + 1 : 0;
  const int32_t last = config.image_blocks && block_last > pos ? block_last : pos;
  batch.ids.push_back(id);
  batch.rows[kSliding].push_back({seq, pos, first, last});
  batch.rows[kFull].push_back({seq, pos, 0, pos});
}

}  // namespace gemma4
