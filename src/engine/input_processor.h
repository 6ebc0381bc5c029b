// Preparer: a Request becomes a Sequence that only has to be computed. Everything that can be wrong with a request is
// found here, on the thread that brought it. Any thread may call it.
#pragma once

#include <memory>
#include <mutex>

#include "engine/open.h"
#include "engine/output_processor.h"
#include "engine/prompt.h"
#include "engine/sequence.h"

namespace gemma4 {

class Preparer {
 public:
  Preparer(const OpenedModel& opened, const Answerer& answerer);
  std::unique_ptr<Sequence> make(const Request& request, Sink sink) const;  // throws Error
  std::vector<int32_t> prompt_ids(const Request& request) const { return prompts_.make(request).ids; }

 private:
  Grammar grammar(const Request& request) const;

  const Tokenizer tokenizer_;
  const Config config_;
  const GenerationConfig generation_;
  const int max_seq_len_;
  const uint64_t seed_;
  const Answerer& answerer_;
  const PromptMaker prompts_;
  mutable std::once_flag vocabulary_once_;
  mutable std::shared_ptr<const GrammarVocabulary> vocabulary_;
};

}  // namespace gemma4
