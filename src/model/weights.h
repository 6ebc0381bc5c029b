// Weights: a model's tensors on a backend. load_weights() uploads them; store_weights() lays them out for an exported
// program. Which tensors there must be: model/tensor_table.h.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/checkpoint.h"
#include "model/config.h"
#include "model/owned_tensors.h"
#include "model/tensor_parallel.h"

namespace gemma4 {

// A linear layer that is made of several stored matrices, stacked along their output rows. Where their formats agree
// they are one Matrix, so one product computes all outputs; otherwise each is multiplied alone.
struct FusedLinear {
  struct Slice {
    Matrix weight;
    int64_t begin;  // first output column
  };
  std::vector<Slice> slices;
  int64_t rows = 0;  // output columns of all slices
};

// The widths are those of this rank's shard.
struct LayerWeights {
  bool partial_sums = false;  // o and down compute partial sums, which all_reduce() adds up over the ranks
  FusedLinear qkv;            // [q | k | v, hidden]; no v where V is K
  Matrix o;                   // [hidden, heads * head_dim]
  FusedLinear gate_up;        // [gate | up, hidden]
  Matrix down;                // [hidden, intermediate]
  Tensor input_norm, post_attention_norm, pre_feedforward_norm, post_feedforward_norm;  // F32 [hidden]
  Tensor q_norm, k_norm;                                                                // F32 [head_dim]
  float scalar = 1;  // multiplies the residual stream after the layer; 1 in the vision tower
};

int64_t layer_bytes(const LayerWeights& layer);  // of its matrices, as the backend stores them

struct VisionWeights {
  Matrix input;      // [hidden, 3 * patch * patch]
  Matrix positions;  // [2 * positions, hidden]: x's rows, then y's
  std::vector<LayerWeights> layers;
  Tensor std_bias, std_scale;  // F32 [hidden], where config.standardize
  Matrix projection;           // [text hidden, hidden]
};

struct DrafterWeights {
  std::shared_ptr<OwnedTensors> vectors;  // owns the norms' tensors
  Matrix input;                           // [hidden, 2 * target's hidden]
  std::vector<LayerWeights> layers;       // qkv is q alone; no k_norm
  Tensor norm;                            // F32 [hidden]
  Matrix head;                            // [vocab, hidden]
  Matrix output;                          // [target's hidden, hidden]
};

struct Weights {
  std::shared_ptr<OwnedTensors> vectors;  // owns the norms' tensors
  TensorParallel tensor_parallel;
  Matrix embed;                      // [vocab, hidden]
  Matrix head;                       // [this rank's shard of vocab, hidden]
  Tensor norm;                       // F32 [hidden]
  std::vector<LayerWeights> layers;  // [layers of the model]; empty where they were not asked for
  int layers_end = 0;                // the layer after the last that was loaded
  VisionWeights vision;
};

// What of a model a backend gets: all of it, unless layers are spread over several (model/placement.h).
struct WeightParts {
  int begin = 0, end = 1 << 30;  // layers begin .. end - 1 of those that there are
  bool ends = true;              // the embedding, the last norm and the head
  bool vision = true;            // the tower, on rank 0
  // Where given, it is asked after each layer whether that may stay, with the layers before `end`. If not, or if memory
  // is short, the layer is dropped and loading ends.
  std::function<bool(const Weights& so_far, int end)> stays;
};

// Receives the weights in place of the model: an exported program (program/export.h).
struct WeightSink {
  // `names`: the tensors that are stacked in this matrix, in the order of their rows.
  std::function<void(std::span<const std::string> names, const PrepackedWeight& stored)> matrix;
  std::function<void(const std::string& name, const std::vector<float>& values)> vector;
};

// Loads this backend's shard of the text decoder (tensor_parallel.h), and the vision tower on rank 0. The matrices of
// an exported program are used where they lie in its file, so a backend with the same name and layout must have made
// it. Throws Error: with the first complaint of check_weights(), or where the program is for another backend.
Weights load_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, const WeightParts& parts);

// The drafter's, all on one backend. Throws Error with the first complaint of check_weights().
DrafterWeights load_drafter_weights(const Checkpoint& checkpoint, const DrafterConfig& config, Backend& backend);

// Lays out each weight as load_weights() would and hands it to `sink`, one at a time.
void store_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, bool vision,
                   const WeightSink& sink);

}  // namespace gemma4
