// open_model: loads a checkpoint and everything else that an Engine needs. The order finds mistakes cheaply: files,
// config, tokenizer, options, then the weights. The caches come last: how large they are follows from what the weights
// leave.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "model/model.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

struct OpenedModel {
  EngineOptions options;  // defaults resolved
  std::string kind;       // Checkpoint::kind
  ChatTemplateChoice chat_template;
  int64_t parameters = 0;      // values of all weights
  std::string weights_format;  // that most of them have
  GenerationConfig generation;
  Tokenizer tokenizer;
  std::vector<int32_t> end_ids;  // each of these tokens ends an answer
  Ranks backends;
  std::unique_ptr<Model> model;  // also holds the parsed config.json
};

// If `backends` is empty, they are created from the options. Throws Error.
OpenedModel open_model(EngineOptions options, Ranks backends);

// The backends that `backend`, `gpus`, `split`, `gpu_layers` and `channel` of the options ask for. Throws Error.
Ranks make_backends(const EngineOptions& options);

// The drafter that `drafter` and `draft_tokens` of the options ask for; none where that is no model. Where they only
// say how many tokens, the one beside the model, whose path `options` gets. Throws Error.
std::optional<Checkpoint> choose_drafter(EngineOptions& options);

// ModelOptions::device_layers for them. Throws Error.
std::vector<int> device_layers(const EngineOptions& options);

// Computes the sizes of the model's buffers, but for the caches, and resolves the defaults in `options` that do not
// depend on memory. `positions`: the most tokens of a sequence; 0: any. Throws Error if the options contradict each
// other or the model.
ModelOptions plan_activations(EngineOptions& options, int positions);

// The caches and the other defaults, by the rule of model/cache_plan.h. Throws Error.
void plan_memory(EngineOptions& options, const Config& config, int positions, const CacheMemory& memory,
                 ModelOptions& model);

// What open_model() would plan, found without loading the weights.
struct ContextEstimate {
  int64_t weights = 0, free = 0;  // bytes: of the weights; before they are loaded
  int max_seq_len = 0;
  int64_t bytes_per_token = 0;  // in the full layers
  int64_t window_bytes = 0;     // of one sequence, in the sliding layers
};
ContextEstimate estimate_context(const Checkpoint& checkpoint, const Config& config, EngineOptions options);

}  // namespace gemma4
