// VisionModel: the vision tower, which turns the patches of one image into embeddings for the text decoder. Its steps:
// patch embedding plus one position embedding for each axis, encoder layers with attention over the whole image, means
// of 3 x 3 patches, standardisation, projection.
//
// A large image takes as long as a long prompt, so it can be computed in parts, with other work in between: begin(),
// advance() until nothing is left, finish().
#pragma once

#include "base/mutex.h"
#include "model/layer.h"
#include "model/model.h"
#include "model/owned_tensors.h"
#include "model/text.h"

namespace gemma4 {

class VisionModel {
 public:
  VisionModel(Backend& backend, const Config& config, const VisionWeights& weights);

  void begin(const PatchView& patches);  // drops an image that is not finished
  // Computes parts of the tower for at most `work` multiply-adds, but always one part; true: nothing is left.
  bool advance(int64_t work, const Tap& tap);
  Model::ImageEmbeddings finish();
  void encode_again();  // runs the tower on the last image, still on the backend, and drops the result (bench)

  int64_t work(int patches) const;  // multiply-adds of the tower

  // Allocates the buffers of a picture of so many patches, where that takes no memory yet. populate() takes the memory
  // of their first `patches` rows; any thread may call it.
  void reserve(int patches);
  void populate(int patches) const;

 private:
  // What is computed next, by rows: first the embeddings of all rows; then of each layer the queries, keys and values
  // of all rows, and the rest.
  struct Cursor {
    bool embeds = true;
    size_t layer = 0;
    bool attends = false;
    int64_t row = 0;
  };
  void grow(int n);  // allocates buffers for n patches, which the next image reuses
  void write_inputs(const PatchView& patches, std::span<const int32_t> group);
  std::vector<int32_t> pool_groups(const PatchView& patches, int64_t* soft_rows) const;
  int64_t input_work() const;             // multiply-adds of a row until keys and values are in the cache, in one layer
  int64_t rest_work(int n) const;         // and of the rest
  int64_t embed_work() const;             // and of its embedding
  int64_t part_work() const;              // of a row, in the part that the cursor is in
  void tower(const Tap& tap);             // from pixels_ to normed_
  void run(bool record, const Tap& tap);  // the same, as a recorded graph if `record`
  void embed_rows(int64_t begin, int64_t count);
  void embedded(const Tap& tap);                       // all rows are
  int64_t advance_part(int64_t work, const Tap& tap);  // returns its multiply-adds
  void layer_rows(bool attends, size_t layer, int64_t begin, int64_t count);
  void pool();

  Backend& be_;
  OwnedTensors tables_, buffers_;
  mutable Mutex buffers_change_;  // buffers_ are allocated and released, or populated
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
  bool again_ = false;  // the last image has the size of the one before
  Cursor cursor_;
};

}  // namespace gemma4
