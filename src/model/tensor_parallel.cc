#include "model/tensor_parallel.h"

#include <algorithm>
#include <numeric>
#include <string>

namespace gemma4 {
namespace {

// The smallest range of MLP columns and of head rows. 16 columns of bf16 are 32 bytes, a good load size on every
// backend. 128 rows are a row tile of the cuda backend.
constexpr int64_t kMlpUnit = 16;
constexpr int64_t kVocabUnit = 128;

[[noreturn]] void refuse(int world, const std::string& why) {
  throw Error("cannot split the model over " + std::to_string(world) + " devices: " + why);
}

const Matrix& find(const Checkpoint& checkpoint, int layer, const char* name) {
  return checkpoint.find("layers." + std::to_string(layer) + "." + name)->matrix;
}

// All ranks have the same number of query heads, and each rank has whole the key-value heads that its query heads read.
void shard_heads(TensorParallel& s, AttentionKind kind, const AttentionConfig& a) {
  if (a.heads % s.world != 0) refuse(s.world, "its " + std::to_string(a.heads) + " query heads do not divide");
  if (a.kv_heads % s.world != 0 && s.world % a.kv_heads != 0) {
    refuse(s.world, "its " + std::to_string(a.kv_heads) + " key-value heads neither divide nor repeat evenly");
  }
  const int64_t heads = a.heads / s.world, kv_heads = std::max(1, a.kv_heads / s.world);
  s.heads[kind] = {s.rank * heads, heads};
  s.kv_heads[kind] = {int64_t{s.rank} * a.kv_heads / s.world, kv_heads};
}

void check_o(const TensorParallel& s, const Checkpoint& checkpoint, const Config& config, int layer) {
  const AttentionKind kind = config.kinds[static_cast<size_t>(layer)];
  const Matrix& o = find(checkpoint, layer, "self_attn.o_proj.weight");
  const int64_t columns = s.heads[kind].count * config.attention[kind].head_dim;
  if (s.world == 1 || columns % column_block(o) == 0) return;
  refuse(s.world, "layers." + std::to_string(layer) + ".self_attn.o_proj.weight is stored in " +
                      std::string(info(o.format).name) + " groups of " + std::to_string(column_block(o)) +
                      " columns, and a device's query heads take " + std::to_string(columns));
}

}  // namespace

std::vector<int64_t> cuts(int64_t n, int64_t unit, int world, const std::string& what) {
  const int64_t units = (n + unit - 1) / unit;
  if (units < world) {
    refuse(world, std::to_string(n) + " " + what + " are " + std::to_string(units) + " pieces of " +
                      std::to_string(unit) + ", the least one device can take");
  }
  std::vector<int64_t> at;
  for (int64_t r = 0; r <= world; ++r) at.push_back(std::min(n, units * r / world * unit));
  return at;
}

TensorParallel shard_model(const Checkpoint& checkpoint, const Config& config, int rank, int world) {
  TensorParallel s;
  s.rank = rank, s.world = world;
  for (const AttentionKind kind : {kSliding, kFull}) shard_heads(s, kind, config.attention[kind]);
  int64_t unit = world > 1 ? kMlpUnit : 1;
  for (int i = 0; i < config.layers; ++i) {
    check_o(s, checkpoint, config, i);
    if (world > 1) unit = std::lcm(unit, int64_t{column_block(find(checkpoint, i, "mlp.down_proj.weight"))});
  }
  const std::vector<int64_t> mlp = cuts(config.intermediate, unit, world, "columns of the MLP");
  s.mlp = {mlp[rank], mlp[rank + 1] - mlp[rank]};
  s.vocab = cuts(config.vocab, kVocabUnit, world, "ids of the vocabulary");
  return s;
}

}  // namespace gemma4
