// OutputProcessor: processes sampled tokens. It appends them to the sequence, turns tokens into events for the sink,
// and knows when an answer is over.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/sequence.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

class OutputProcessor {
 public:
  OutputProcessor(const Tokenizer& tokenizer, std::vector<int32_t> end_ids);

  // Initializes the parser and the penalty counts from the prompt.
  void begin(Sequence& sequence) const;

  // Appends the sampled token. `logits`: [vocabulary] if the sequence wants logprobs, else empty. Returns how the
  // answer ended, if it did; the caller then calls finish().
  std::optional<Finish> accept(Sequence& sequence, int32_t token, std::span<const float> logits) const;

  void finish(Sequence& sequence, Finish how) const;                             // the last event
  void fail(Sequence& sequence, const std::string& message, bool device) const;  // the last event

  const std::vector<int32_t>& end_ids() const { return end_ids_; }

 private:
  void emit(Sequence& sequence, std::vector<OutputEvent> events) const;
  void count(Sequence& sequence, int32_t token, int times) const;

  Tokenizer tokenizer_;
  std::vector<int32_t> end_ids_;
  int32_t channel_begin_, channel_end_;
};

}  // namespace gemma4
