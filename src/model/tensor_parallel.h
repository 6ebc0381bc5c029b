// TensorParallel: which shard of the network each rank computes (Megatron-LM, Shoeybi et al. 2019). Query heads,
// key-value heads and the columns of the MLP are split over the ranks. A rank has its rows of q, k, v, gate and up, and
// its columns of o and down, whose outputs are partial sums: one all-reduce adds up each. The head is split by rows of
// the vocabulary. Norms and the embedding are on every rank, the vision tower on rank 0 only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/config.h"

namespace gemma4 {

struct ShardRange {
  int64_t begin = 0, count = 0;
};

struct TensorParallel {
  int rank = 0, world = 1;
  ShardRange heads[kAttentionKinds];  // query heads
  // The KV heads that the query heads read. If there are fewer KV heads than ranks, neighbouring ranks have the same
  // one.
  ShardRange kv_heads[kAttentionKinds];
  ShardRange mlp;              // columns
  std::vector<int64_t> vocab;  // [world + 1] rank r computes the logits of ids vocab[r] .. vocab[r + 1] - 1

  ShardRange ids() const { return {vocab[rank], vocab[rank + 1] - vocab[rank]}; }
};

// The shards of one rank. The checkpoint must have passed check_weights(). Throws Error if the model cannot be split:
// heads that do not divide, or a quantised matrix with fewer groups or blocks than ranks.
TensorParallel shard_model(const Checkpoint& checkpoint, const Config& config, int rank, int world);

// [world + 1] ascending from 0 to n: ranges as even as multiples of `unit` allow. Throws Error, with `what` as their
// name, if there are fewer units than ranks.
std::vector<int64_t> cuts(int64_t n, int64_t unit, int world, const std::string& what);

}  // namespace gemma4
