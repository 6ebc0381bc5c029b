// DraftSource: which tokens does the next step verify? After a step it proposes the next tokens of each sequence that
// goes on: by look-up in the conversation, or with the model's own drafter. How many follows from the options, or from
// what was accepted and what steps took. It belongs to EngineCore, on the engine's thread. A draft is only a proposal:
// the model's sampler decides, so that no draft changes an answer.
#pragma once

#include <span>
#include <vector>

#include "engine/drafts/draft_length.h"
#include "engine/engine.h"
#include "engine/sequence.h"
#include "model/model.h"

namespace gemma4 {

constexpr const char* kNgramDrafter = "ngram";  // EngineOptions::drafter: look-up

// Drafts of all sequences in one step, at most: what plan_activations() has rows for. 0: nothing is drafted.
int draft_rows_max(const EngineOptions& options);

class DraftSource {
 public:
  DraftSource(Model& model, const EngineOptions& options);

  bool on() const { return rows_max_ > 0; }
  int rows_max() const { return rows_max_; }

  struct Candidate {
    Sequence* sequence;  // whose last token the last step drew
    int hidden_row;      // DraftRow::hidden_row
  };
  // Sets the drafts of the sequences. It must follow the model's forward() at once: the drafter reads keys that the
  // next step may overwrite.
  void draft(std::span<const Candidate> candidates);

  // A step of generated tokens alone, which had so many rows.
  void note_step(int rows, double ms) { times_.add(rows, ms); }

 private:
  std::vector<int> lengths(std::span<const Candidate> candidates) const;
  bool has_window(const Sequence& sequence) const;
  void draft_with_model(std::span<const Candidate> candidates, std::span<const int> lengths);

  Model& model_;
  const EngineOptions& options_;
  const int rows_max_;
  StepTimes times_;
  double draft_ms_ = 0;  // of one draft for all sequences
};

}  // namespace gemma4
