// VisionModel: the tower that turns the patches of one image into rows of the text stream. Patch embedding plus a row
// of each axis's position table, encoder layers that see the whole image, 3 x 3 means, standardisation, projection.
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
  void encode_again();  // runs the tower on the last image, which is on the backend, and drops the result (bench)

 private:
  void grow(int n);  // working memory for n patches; kept for the next image
  void write_inputs(const PatchView& patches, std::span<const int32_t> group);
  std::vector<int32_t> pool_groups(const PatchView& patches, int64_t* soft_rows) const;
  void tower(const Tap& tap);             // from pixels_ to normed_
  void run(bool record, const Tap& tap);  // the same, replayed where the backend records

  Backend& be_;
  OwnedTensors tables_, buffers_;
  const Config& config_;
  const VisionConfig& c_;
  const VisionWeights& w_;
  Rope rope_;
  Tensor middle_, stretch_;  // F32 [3 * patch * patch]: what pixels lose and are multiplied by
  int rows_max_ = 0;
  uint64_t replay_key_ = 0;  // of the buffers below
  Activations a_;
  KvCache kv_;
  Tensor raw_, pixels_;  // F32 and activation type [n, 3 * patch * patch]; one where the types are
  Tensor xy_, ids_[2];   // I32 [n, 2], [n, 1] of each axis
  Tensor rows_, group_;  // I32 [n, 4], [n, 1]
  Tensor pooled_, normed_;
  std::vector<Row> host_rows_;  // of the last image
  int64_t soft_rows_ = 0;
};

}  // namespace gemma4
