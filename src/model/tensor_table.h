// The table of tensors: which tensors a checkpoint of a Config must hold, under which names and with which shapes.
// check_weights() compares a checkpoint with it, and load_weights() (model/weights.h) loads a layer by it. What Hugging
// Face and GGUF files call these tensors: checkpoint/names.h.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/checkpoint.h"
#include "model/config.h"

namespace gemma4 {

struct TensorNeed {
  std::string name;
  std::vector<int64_t> shape;
  bool optional = false;
};

// Every tensor that a checkpoint of this config holds. `vision`: those of the vision tower too.
std::vector<TensorNeed> needed_tensors(const Config& config, bool vision);
std::vector<TensorNeed> needed_tensors(const DrafterConfig& config);

// One sentence for each tensor that is missing, has the wrong shape or is not known. Empty if all is well.
std::vector<std::string> check_weights(const Checkpoint& checkpoint, const Config& config);
std::vector<std::string> check_weights(const Checkpoint& checkpoint, const DrafterConfig& config);

// Throws Error with the first of these sentences. For code that writes another checkpoint from this one.
void require_weights(const Checkpoint& checkpoint, const Config& config);
void require_weights(const Checkpoint& checkpoint, const DrafterConfig& config);

// The tensors of one layer. Both towers have the same ones; they differ in the sizes below.
enum class LayerDim { kHidden, kIntermediate, kQ, kKv, kHeadDim };

// Which keys and values a layer makes: both; one tensor that is K and V; none (a drafter's, which reads the target's).
enum class LayerKv { kBoth, kShared, kNone };

struct LayerDims {
  int64_t hidden, intermediate;
  int64_t q, kv;  // heads * head_dim
  int64_t head_dim;
  LayerKv makes;
  int64_t operator[](LayerDim dim) const;
};

LayerDims text_layer_dims(const Config& config, int layer);
LayerDims drafter_layer_dims(const DrafterConfig& config, int layer);
LayerDims vision_layer_dims(const VisionConfig& config);

struct LayerWeights;
struct FusedLinear;

struct LayerTensor {
  const char* name;             // after layer_prefix()
  std::vector<LayerDim> shape;  // [outputs, inputs], or [elements] of a norm
  // Where it is loaded. Neighbours in the table with the same FusedLinear are stacked in it.
  std::variant<FusedLinear LayerWeights::*, Matrix LayerWeights::*, Tensor LayerWeights::*> member;
};

const std::vector<LayerTensor>& layer_tensors(LayerKv makes);

constexpr const char* kTextTower = "";
constexpr const char* kVisionTower = "vision_tower.encoder.";
std::string layer_prefix(const char* tower, int layer);  // "layers.3."

}  // namespace gemma4
