// open_model: a checkpoint on disk becomes everything that an Engine needs, in the order in which mistakes are cheap to
// find: files, config, tokenizer, memory plan, then weights on the backend.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "model/model.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

struct OpenedModel {
  EngineOptions options;  // with defaults filled in
  std::string kind;       // Checkpoint::kind
  GenerationConfig generation;
  Tokenizer tokenizer;
  std::vector<int32_t> end_ids;  // a token of these ends an answer
  Ranks backends;
  std::unique_ptr<Model> model;  // also holds the parsed config.json
};

// `backends`: made by the caller, or none. Throws Error.
OpenedModel open_model(EngineOptions options, Ranks backends);

// The memory that the model needs for these options; fills in the defaults among them. Throws Error where they
// contradict each other or the model.
ModelOptions plan_memory(EngineOptions& options, const Config& config);

}  // namespace gemma4
