// TextModel: the text decoder, or one rank's shard of it. forward(Batch) embeds the tokens, runs every layer and
// computes the logits of batch.logit_rows. Rank 0 has all logits and samples.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/batch.h"
#include "model/layer.h"
#include "model/model.h"
#include "model/owned_tensors.h"

namespace gemma4 {

// Observes activations; see Model::tap.
using Tap = std::function<void(const std::string& name, int layer, const Tensor& x)>;

class TextModel {
 public:
  TextModel(Backend& backend, const Config& config, const Weights& weights, const ModelOptions& options);

  // The key-value caches: pages and pages_per_seq of the options. Call it once, before anything below.
  void alloc_caches(const ModelOptions& options);

  void set_pages(AttentionKind kind, int seq, std::span<const int32_t> pages);
  void copy_page(AttentionKind kind, int32_t from, int32_t to);
  std::vector<int32_t> forward(const Batch& batch, const Tap& tap);
  Tensor logits() const { return logits_; }  // F32 [logit rows of the last batch, vocab]

 private:
  struct Inputs {  // of one batch, on the device
    Rows rows[kAttentionKinds];
    Tensor ids, pos, logit_index, image_index;
  };
  void alloc_activations(int64_t rows, int64_t q_max, int64_t kv_max, int64_t qkv_max);
  Inputs write_inputs(const Batch& batch);
  void embed(const Batch& batch, const Activations& a, const Inputs& in);
  void run(const Batch& batch, const Activations& a, const Inputs& in, const Tap& tap);
  void check(const Batch& batch) const;

  Backend& be_;
  OwnedTensors owned_;
  const Config& config_;
  const Weights& w_;
  ModelOptions options_;
  uint64_t graph_key_;  // of this model (graph_key.h)
  LayerShape shapes_[kAttentionKinds];
  Rope ropes_[kAttentionKinds];
  Tensor pages_[kAttentionKinds];  // I32 [sequences, pages of a sequence]
  std::vector<KvCache> kv_;        // [layers]
  Activations a_;
  Tensor out_x_, out_h_;  // [logits_max, hidden]
  Tensor all_logits_, logits_;
  Tensor sampled_;                // I32 [logits_max]
  Tensor inputs_;                 // I32, all integers of a batch side by side: one copy to the device in each step
  std::vector<int32_t> staging_;  // the same on the host
};

}  // namespace gemma4
