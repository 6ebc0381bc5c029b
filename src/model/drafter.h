// Drafter: proposes the next tokens of sequences from the target's last hidden state and the target's own key-value
// cache
// (`gemma4_assistant`). Model owns it and runs it after a forward(), on the device that has the target. Source:
// transformers' modeling_gemma4_assistant.py and SinglePositionMultiTokenCandidateGenerator.
//
// One step, for a sequence whose last token t has position p (its K and V do not exist yet):
//   x = pre_projection [embedding of t, scaled | hidden]     hidden: the target's, after its final norm
//   x = layers(x)     a target's layer without K and V of its own; q always at position p, keys only up to p - 1
//   h = norm(x);  logits = h embedding^T, no softcap;  next t = argmax;  next hidden = post_projection h
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/model.h"
#include "model/text.h"
#include "model/weights.h"

namespace gemma4 {

class Drafter {
 public:
  // Checks that the drafter fits the model `target`, then loads it for up to rows_max sequences. Throws Error.
  Drafter(const Checkpoint& checkpoint, const Config& target, Backend& backend, int rows_max);

  // See Model::draft(). `target` has run the forward pass. The tap gets "draft.logits" F32 [rows, vocab] and
  // "draft.hidden" [rows, target's hidden] of each step.
  std::vector<int32_t> draft(const TextModel& target, std::span<const DraftRow> rows, int count, const Tap& tap);

  int64_t weights_bytes() const;

 private:
  struct Inputs {
    std::vector<Row> host[kAttentionKinds];
    Rows rows[kAttentionKinds];
    Tensor token, pos, hidden_row;  // I32 [rows, 1]
  };
  void write_inputs(Inputs& in, std::span<const DraftRow> rows);
  void step(const TextModel& target, const Inputs& in, Tensor input, Tensor logits);
  void check(const TextModel& target, std::span<const DraftRow> rows, int count) const;
  Tensor hidden_of(Tensor input) const { return input.columns(config_.backbone_hidden, config_.backbone_hidden); }

  const DrafterConfig config_;
  Backend& be_;
  OwnedTensors owned_;
  const DrafterWeights w_;
  Activations a_;
  Tensor input_;    // [rows, 2 * target's hidden]: embedding, then hidden state
  Tensor logits_;   // F32 [rows, vocab]
  Tensor drafted_;  // I32 [kDraftTokensMax * rows, 1]
  Tensor inputs_;   // I32, all integers of a call side by side: one copy to the device
};

}  // namespace gemma4
