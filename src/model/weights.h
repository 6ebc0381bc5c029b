// Weights: one row for each tensor the model needs: its name, its shape, where it goes. check_weights() finds what is
// missing, misshapen or unknown without loading anything; load_weights() puts all of it on a backend.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "checkpoint/checkpoint.h"
#include "model/config.h"
#include "model/owned.h"
#include "model/tensor_parallel.h"

namespace gemma4 {

struct TensorNeed {
  std::string name;
  std::vector<int64_t> shape;
  bool optional = false;
};

// Every tensor a checkpoint of this config holds. `vision`: the tower too.
std::vector<TensorNeed> needed_tensors(const Config& config, bool vision);

// One sentence for each tensor that is missing, has the wrong shape or is not known; empty where all is well.
std::vector<std::string> check_weights(const Checkpoint& checkpoint, const Config& config);

// Throws Error with the first of them, for whoever makes another checkpoint of this one.
void require_weights(const Checkpoint& checkpoint, const Config& config);

// A linear layer whose outputs come from one or more stored matrices: one Matrix where their formats agree.
struct Fused {
  struct Part {
    Matrix w;
    int64_t begin;  // first output column
  };
  std::vector<Part> parts;
  int64_t rows = 0;  // output columns in all
};

// The widths are those of this rank's shard.
struct LayerWeights {
  bool partial_sums = false;  // o and down give this rank's part of a sum over all ranks
  Fused qkv;                  // [q | k | v, hidden]; no v where V is K
  Matrix o;                   // [hidden, heads * head_dim]
  Fused gate_up;              // [gate | up, hidden]
  Matrix down;                // [hidden, intermediate]
  Tensor input_norm, post_attention_norm, pre_feedforward_norm, post_feedforward_norm;  // F32 [hidden]
  Tensor q_norm, k_norm;                                                                // F32 [head_dim]
  float scalar = 1;  // multiplies the residual stream after the layer; 1 in the vision tower
};

struct VisionWeights {
  Matrix input;      // [hidden, 3 * patch * patch]
  Matrix positions;  // [2 * positions, hidden]: x's rows, then y's
  std::vector<LayerWeights> layers;
  Tensor std_bias, std_scale;  // F32 [hidden], where config.standardize
  Matrix projection;           // [text hidden, hidden]
};

struct Weights {
  std::shared_ptr<Owned> vectors;  // keeps the norms' tensors
  TensorParallel tensor_parallel;
  Matrix embed;  // [vocab, hidden]
  Matrix head;   // [this rank's shard of vocab, hidden]
  Tensor norm;   // F32 [hidden]
  std::vector<LayerWeights> layers;
  VisionWeights vision;
};

// Where the weights go instead of staying on the backend: an exported program (program/export.h).
struct WeightSink {
  std::function<void(std::span<const std::string> parts, const PrepackedWeight& stored)> matrix;
  std::function<void(const std::string& name, const std::vector<float>& values)> vector;
};

// Throws Error with the first complaints of check_weights(). Loads this backend's shard of the text decoder
// (tensor_parallel.h), and the vision tower on rank 0. The matrices of an exported program are adopted as they lie; its
// maker must have been a backend like this one.
Weights load_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, bool vision);

// Lays out each weight as load_weights() would and hands it to `sink`, one at a time.
void store_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, bool vision,
                   const WeightSink& sink);

}  // namespace gemma4
