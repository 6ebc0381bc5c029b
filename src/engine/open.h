// open_model: loads a checkpoint and everything else that an Engine needs. The order finds mistakes cheaply: files,
// config, tokenizer, memory plan, and last the weights.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "model/model.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

struct OpenedModel {
  EngineOptions options;  // defaults resolved
  std::string kind;       // Checkpoint::kind
  GenerationConfig generation;
  Tokenizer tokenizer;
  std::vector<int32_t> end_ids;  // each of these tokens ends an answer
  Ranks backends;
  std::unique_ptr<Model> model;  // also holds the parsed config.json
};

// If `backends` is empty, they are created from the options. Throws Error.
OpenedModel open_model(EngineOptions options, Ranks backends);

// Computes the sizes of the model's buffers and resolves the defaults in `options`. Throws Error if the options
// contradict each other or the model.
ModelOptions plan_memory(EngineOptions& options, const Config& config);

}  // namespace gemma4
