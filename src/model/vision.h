// VisionModel: the tower that turns the patches of one image into rows of the text stream. Patch embedding plus a row
// of each axis's position table, encoder layers that see the whole image, 3 x 3 means, standardisation, projection.
#pragma once

#include "model/layer.h"
#include "model/model.h"
#include "model/owned.h"
#include "model/text.h"

namespace gemma4 {

class VisionModel {
 public:
  VisionModel(Backend& backend, const Config& config, const VisionWeights& weights);

  Model::Soft encode(const PatchView& patches, const Tap& tap);

 private:
  void grow(int n);  // working memory for n patches; kept for the next image
  Tensor write_patches(const PatchView& patches);
  std::vector<int32_t> pool_groups(const PatchView& patches, int64_t* soft_rows) const;

  Backend& be_;
  Owned tables_, buffers_;
  const Config& config_;
  const VisionConfig& c_;
  const VisionWeights& w_;
  Rope rope_;
  int rows_max_ = 0;
  Activations a_;
  Kv kv_;
  Tensor pixels_;        // [n, 3 * patch * patch]
  Tensor xy_, ids_;      // I32 [n, 2], [n, 1]
  Tensor rows_, group_;  // I32 [n, 4], [n, 1]
  Tensor pooled_, normed_;
};

}  // namespace gemma4
