// TensorParallel: which part of the network each rank computes (Megatron-LM, Shoeybi et al. 2019). Query and key-value
// heads and the MLP's columns are shared out: a rank holds those rows of q, k, v, gate and up, and those columns of o
// and down, whose outputs are then partial sums for one all-reduce each. The head is shared out by rows of the
// vocabulary. Norms and the embedding are on every rank, the vision tower on rank 0 alone.
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
  // Those that the query heads read. Where there are fewer than ranks, neighbouring ranks hold the same one.
  ShardRange kv_heads[kAttentionKinds];
  ShardRange mlp;              // columns
  std::vector<int64_t> vocab;  // [world + 1] rank r computes the logits of ids vocab[r] .. vocab[r + 1] - 1

  ShardRange ids() const { return {vocab[rank], vocab[rank + 1] - vocab[rank]}; }
};

// The split of this checkpoint, all of whose tensors are there. Throws Error with what cannot be shared out: heads that
// do not divide, or fewer groups or blocks of a quantised matrix than ranks.
TensorParallel shard_model(const Checkpoint& checkpoint, const Config& config, int rank, int world);

// [world + 1] ascending from 0 to n: shares as even as multiples of `unit` allow. Fewer units than ranks: Error, which
// calls them `what`.
std::vector<int64_t> cuts(int64_t n, int64_t unit, int world, const std::string& what);

}  // namespace gemma4
