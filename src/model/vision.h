// VisionModel: the vision tower, which turns the patches of one image into embeddings for the text decoder. Its steps:
// patch embedding plus one position embedding for each axis, encoder layers with attention over the whole image, means
// of 3 x 3 patches, standardisation, projection.
#pragma once

#include "model/layer.h"
#include "model/model.h"
#include "model/owned_tensors.h"
#include "model/text.h"

namespace gemma4 {

class VisionModel {
 public:
  VisionModel(Backend& backend, const Config& config, const VisionWeights& weights);

  Model::ImageEmbeddings encode(const PatchView& patches, const Tap& tap);
  void encode_again();  // runs the tower on the last image, still on the backend, and drops the result (bench)

 private:
  void grow(int n);  // allocates buffers for n patches, which the next image reuses
  void write_inputs(const PatchView& patches, std::span<const int32_t> group);
  std::vector<int32_t> pool_groups(const PatchView& patches, int64_t* soft_rows) const;
  void tower(const Tap& tap);             // from pixels_ to normed_
  void run(bool record, const Tap& tap);  // the same, as a recorded graph if `record`

  Backend& be_;
  OwnedTensors tables_, buffers_;
  const Config& config_;
  const VisionConfig& c_;
  const VisionWeights& w_;
  Rope rope_;
  Tensor middle_, stretch_;  // F32 [3 * patch * patch]: offset and factor of pixels
  int rows_max_ = 0;
  uint64_t graph_key_ = 0;  // of the buffers below
  Activations a_;
  KvCache kv_;
  Tensor raw_, pixels_;  // F32 and activation type [n, 3 * patch * patch]; the same tensor if the types agree
  Tensor xy_, ids_[2];   // I32 [n, 2], [n, 1] of each axis
  Tensor rows_, group_;  // I32 [n, 4], [n, 1]
  Tensor pooled_, normed_;
  std::vector<Row> host_rows_;  // of the last image
  int64_t soft_rows_ = 0;
};

}  // namespace gemma4
