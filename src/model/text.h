// TextModel: the text decoder on one backend, or one rank's shard of it, or one stage of it. A pass is start(Batch),
// compute() and sample(): it embeds the tokens, runs every layer and computes the logits of batch.logit_rows. Rank 0
// has all logits and samples. A stage does its part of that: Decoder (model/decoder.h) brings it the rows of the stage
// before.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/batch.h"
#include "model/layer.h"
#include "model/model.h"
#include "model/owned_tensors.h"
#include "model/placement.h"

namespace gemma4 {

// Observes activations; see Model::tap.
using Tap = std::function<void(Backend& backend, const std::string& name, int layer, const Tensor& x)>;

class TextModel {
 public:
  TextModel(Backend& backend, const Config& config, const Weights& weights, const ModelOptions& options,
            const Stage& stage);

  // The key-value caches: pages and pages_per_seq of the options. Call it once, before anything below.
  void alloc_caches(const ModelOptions& options);

  void set_pages(AttentionKind kind, int seq, std::span<const int32_t> pages);
  void copy_page(AttentionKind kind, int32_t from, int32_t to);

  void populate(int rows) const { activations_.populate(rows); }  // Model::populate()

  void start(const Batch& batch);  // writes the batch's integers to the backend
  void compute(const Batch& batch, const Tap& tap);
  // The last stage: the ids that `batch` samples; on other ranks than 0 none.
  std::vector<int32_t> sample(const Batch& batch);

  // Between start() and compute(), of a stage but the first: where the rows of the stage before go, [rows, hidden]. A
  // stage without layers takes the logit rows only.
  Tensor input() const { return has_layers() ? a_.x.slice(0, rows_) : out_x_.slice(0, in_.logit_index.rows()); }
  // After compute(), of a stage but the last: all rows, or the logit rows only.
  Tensor output(bool logit_rows);
  bool has_layers() const { return stage_.begin < stage_.end; }
  Backend& backend() const { return be_; }
  std::string what() const;                  // for reports: "layers 0 to 39 on cuda"
  Tensor logits() const { return logits_; }  // F32 [logit rows of the last batch, vocab]

  // What a drafter reads of a decoder in one stage. hidden(): the logit rows of the last batch after the final norm,
  // [logit rows, hidden]. last_cache(): that of the last layer of a kind.
  Tensor hidden() const { return out_h_.slice(0, in_.logit_index.rows()); }
  const KvCache& last_cache(AttentionKind kind) const;
  const Rope& rope(AttentionKind kind) const { return ropes_[kind]; }
  void embed_ids(Tensor out, Tensor ids) const;  // out [ids, hidden] = their embeddings, scaled

 private:
  struct Inputs {  // of one batch, on the device
    Rows rows[kAttentionKinds];
    Tensor ids, pos, logit_index, image_index;
  };
  Inputs write_inputs(const Batch& batch);
  void embed(const Batch& batch, const Activations& a);
  void run(const Batch& batch, const Activations& a, const Tap& tap);
  void run_layers(const Activations& a, const Tap& tap);
  void run_head(const Tap& tap);
  void check(const Batch& batch) const;

  Backend& be_;
  OwnedTensors owned_, activations_;
  const Config& config_;
  const Weights& w_;
  ModelOptions options_;
  const Stage stage_;
  uint64_t graph_key_;  // of this model (graph_key.h)
  LayerShape shapes_[kAttentionKinds];
  Rope ropes_[kAttentionKinds];
  Tensor pages_[kAttentionKinds];  // I32 [sequences, pages of a sequence]
  std::vector<KvCache> kv_;        // [layers of the stage]
  Activations a_;
  Inputs in_;             // of the batch of start()
  int64_t rows_ = 0;      // of that batch
  Tensor out_x_, out_h_;  // [logits_max, hidden]
  Tensor all_logits_, logits_;
  Tensor sampled_;                // I32 [logits_max]
  Tensor inputs_;                 // I32, all integers of a batch side by side: one copy to the device in each step
  std::vector<int32_t> staging_;  // the same on the host
};

}  // namespace gemma4
