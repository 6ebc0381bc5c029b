#include "model/weights.h"

#include <algorithm>

#include "checkpoint/program_file.h"
#include "model/tensor_table.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

// What one rank holds of a layer: elements of its q, k and v, and columns of its MLP.
struct LayerShards {
  bool partial_sums = false;
  ShardRange q, kv, mlp;

  // The range of a dimension that is shared out over the ranks, or null.
  const ShardRange* find(LayerDim dim) const {
    return dim == LayerDim::kQ ? &q : dim == LayerDim::kKv ? &kv : dim == LayerDim::kIntermediate ? &mlp : nullptr;
  }
};

LayerShards whole(const LayerDims& d) { return {false, {0, d.q}, {0, d.kv}, {0, d.intermediate}}; }

LayerShards text_shards(const TensorParallel& s, const Config& c, int i) {
  const AttentionKind kind = c.kinds[static_cast<size_t>(i)];
  const int64_t dim = c.attention[kind].head_dim;
  const auto heads = [&](ShardRange range) { return ShardRange{range.begin * dim, range.count * dim}; };
  return {s.world > 1, heads(s.heads[kind]), heads(s.kv_heads[kind]), s.mlp};
}

// Brings single tensors, and layers of them, onto the backend, or to `sink` where there is one.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, Backend& backend, OwnedTensors& owned, const WeightSink* sink)
      : checkpoint_(checkpoint), be_(backend), owned_(owned), sink_(sink) {}

  Matrix matrix(const std::string& name) const {
    const Matrix m = host(name);
    return upload({&name, 1}, {&m, 1});
  }

  Matrix rows_of(const std::string& name, ShardRange range) const {
    const Matrix shard = rows(host(name), range);
    return upload({&name, 1}, {&shard, 1});
  }

  Tensor vector(const std::string& name) const {
    const std::vector<float> host_values = values(name);
    if (sink_) return sink_->vector(name, host_values), Tensor();
    const Tensor t = owned_.alloc(DType::kF32, {1, static_cast<int64_t>(host_values.size())});
    be_.write(t, host_values.data());
    return t;
  }

  float scalar(const std::string& name) const {
    if (sink_) sink_->vector(name, values(name));
    return values(name)[0];
  }

  // All tensors of a layer, in the order of the table: an exported program stores them in this order.
  LayerWeights layer(const std::string& prefix, const LayerDims& dims, const LayerShards& shards) const {
    LayerWeights w;
    w.partial_sums = shards.partial_sums;
    const std::vector<LayerTensor>& table = layer_tensors(dims.makes);
    for (auto it = table.begin(); it != table.end();) {
      const auto end = std::find_if(it, table.end(), [&](const LayerTensor& t) { return t.member != it->member; });
      const std::string name = prefix + it->name;
      if (const auto* norm = std::get_if<Tensor LayerWeights::*>(&it->member)) {
        w.*(*norm) = vector(name);
      } else if (const auto* single = std::get_if<Matrix LayerWeights::*>(&it->member)) {
        const Matrix shard = shard_of(*it, name, shards);
        w.*(*single) = upload({&name, 1}, {&shard, 1});
      } else {
        w.*std::get<FusedLinear LayerWeights::*>(it->member) = fused({it, end}, prefix, shards);
      }
      it = end;
    }
    for (FusedLinear::Slice& slice : w.qkv.slices) slice.weight.feeds_attention = true;
    return w;
  }

 private:
  Matrix host(const std::string& name) const { return checkpoint_.load(name); }

  std::vector<float> values(const std::string& name) const {
    const Matrix m = host(name);
    if (!m.codes) throw Error(checkpoint_.path.string() + ": tensor " + name + " is not kept as a vector");
    std::vector<float> out(static_cast<size_t>(m.rows * m.cols));
    for (int64_t r = 0; r < m.rows; ++r) unpack_row(m, r, out.data() + r * m.cols);
    return out;
  }

  // This rank's rows, or columns. A matrix that is not split stays as it is.
  static Matrix rows(const Matrix& m, ShardRange range) {
    return range.count == m.rows ? m : slice_rows(m, range.begin, range.count);
  }

  Matrix shard_of(const LayerTensor& tensor, const std::string& name, const LayerShards& shards) const {
    const Matrix m = host(name);
    if (const ShardRange* range = shards.find(tensor.shape[0])) return rows(m, *range);
    const ShardRange* range = shards.find(tensor.shape[1]);
    return range == nullptr || range->count == m.cols ? m : slice_cols(m, range->begin, range->count);
  }

  // `matrices`, stacked, as one matrix of the backend; `names` are theirs.
  Matrix upload(std::span<const std::string> names, std::span<const Matrix> matrices) const {
    if (checkpoint_.program) return be_.load_prepacked(stored(names).stored);
    const Matrix m = be_.upload(matrices);
    if (!sink_) return m;
    sink_->matrix(names, be_.serialize(m));
    return Matrix();
  }

  FusedLinear fused(std::span<const LayerTensor> tensors, const std::string& prefix, const LayerShards& shards) const {
    std::vector<std::string> names;
    std::vector<Matrix> matrices;
    for (const LayerTensor& tensor : tensors) {
      names.push_back(prefix + tensor.name);
      matrices.push_back(shard_of(tensor, names.back(), shards));
    }
    const bool stacked = stackable(names, matrices);
    FusedLinear out;
    for (size_t i = 0; i < matrices.size(); ++i) {
      if (!stacked) out.slices.push_back({upload({&names[i], 1}, {&matrices[i], 1}), out.rows});
      out.rows += matrices[i].rows;
    }
    if (stacked) out.slices.push_back({upload(names, matrices), 0});
    return out;
  }

  // Can one product compute all of these? A program says so; otherwise matrices of one format can be stacked.
  bool stackable(const std::vector<std::string>& names, const std::vector<Matrix>& matrices) const {
    if (checkpoint_.program) {
      const auto it = checkpoint_.program->matrices.find(names[0]);
      return it != checkpoint_.program->matrices.end() && it->second.names.size() == names.size();
    }
    return std::ranges::all_of(matrices, [&](const Matrix& m) {
      return m.format == matrices[0].format && m.group == matrices[0].group && m.scale.dtype == matrices[0].scale.dtype;
    });
  }

  const ProgramMatrix& stored(std::span<const std::string> names) const {
    const auto it = checkpoint_.program->matrices.find(names[0]);
    if (it == checkpoint_.program->matrices.end() || !std::ranges::equal(it->second.names, names)) {
      throw Error(checkpoint_.path.string() + ": tensor " + names[0] + " is not stacked as this program multiplies");
    }
    return it->second;
  }

  const Checkpoint& checkpoint_;
  Backend& be_;
  OwnedTensors& owned_;
  const WeightSink* sink_;
};

VisionWeights load_vision(const Loader& load, const Config& config) {
  VisionWeights v;
  v.input = load.matrix("vision_tower.patch_embedder.input_proj.weight");
  v.positions = load.matrix("vision_tower.patch_embedder.position_embedding_table");
  for (int i = 0; i < config.vision.layers; ++i) {
    const LayerDims dims = vision_layer_dims(config.vision);
    v.layers.push_back(load.layer(layer_prefix(kVisionTower, i), dims, whole(dims)));
  }
  if (config.vision.standardize) {
    v.std_bias = load.vector("vision_tower.std_bias");
    v.std_scale = load.vector("vision_tower.std_scale");
  }
  v.projection = load.matrix("embed_vision.embedding_projection.weight");
  return v;
}

// The bytes of a program have the layout of the backend that made it.
void check_program(const Checkpoint& checkpoint, const Backend& backend) {
  const ProgramHeader& made = checkpoint.program->header;
  const std::string path = checkpoint.path.string(), name = backend.name();
  if (backend.world() > 1) {
    throw Error(path + " is a program for one device and cannot be split over " + std::to_string(backend.world()) +
                "; run the checkpoint it was made of, " + made.source);
  }
  if (made.backend != name) {
    throw Error(path + " was made for the " + made.backend + " backend and this is " + name +
                "; make the one for it: " + export_command_of(made, name, path + "-" + name));
  }
  if (made.layout != backend.layout()) {
    throw Error(path + " has its weights in the layout '" + made.layout + "' and this " + name + " backend reads '" +
                backend.layout() + "'; make it anew: " + export_command_of(made, name, path));
  }
}

LayerWeights load_layer(const Loader& load, const Weights& w, const Config& config, int i) {
  const std::string prefix = layer_prefix(kTextTower, i);
  LayerWeights layer = load.layer(prefix, text_layer_dims(config, i), text_shards(w.tensor_parallel, config, i));
  layer.scalar = load.scalar(prefix + "layer_scalar");
  return layer;
}

void load_layers(const Loader& load, const Config& config, const WeightParts& parts, Weights& w) {
  w.layers.resize(static_cast<size_t>(config.layers));
  for (w.layers_end = parts.begin; w.layers_end < std::min(parts.end, config.layers);) {
    LayerWeights& layer = w.layers[static_cast<size_t>(w.layers_end)];
    try {
      layer = load_layer(load, w, config, w.layers_end);
      if (!parts.stays || parts.stays(w, w.layers_end + 1)) {
        ++w.layers_end;
        continue;
      }
    } catch (const OutOfMemory&) {
      if (!parts.stays) throw;
    }
    layer = LayerWeights();
    return;
  }
}

// If the checkpoint ties the head to the embedding, a single backend keeps one copy for both. Several ranks each need
// the whole table for the embedding and their shard of it for the head.
void load_head(const Loader& load, const Checkpoint& checkpoint, Weights& w) {
  w.norm = load.vector("norm.weight");
  const bool own_head = checkpoint.find("lm_head.weight") != nullptr;
  w.head = w.tensor_parallel.world == 1 && !own_head
               ? w.embed
               : load.rows_of(own_head ? "lm_head.weight" : "embed_tokens.weight", w.tensor_parallel.ids());
}

Weights empty_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend) {
  if (checkpoint.program) check_program(checkpoint, backend);
  require_weights(checkpoint, config);
  Weights w;
  w.tensor_parallel = shard_model(checkpoint, config, backend.rank(), backend.world());
  w.vectors = std::make_shared<OwnedTensors>(backend);
  return w;
}

}  // namespace

int64_t layer_bytes(const LayerWeights& layer) {
  int64_t bytes = matrix_bytes(layer.o) + matrix_bytes(layer.down);
  for (const FusedLinear* fused : {&layer.qkv, &layer.gate_up}) {
    for (const FusedLinear::Slice& slice : fused->slices) bytes += matrix_bytes(slice.weight);
  }
  return bytes;
}

// The layers come last: how many fit is known when all else is there.
Weights load_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, const WeightParts& parts) {
  Weights w = empty_weights(checkpoint, config, backend);
  const Loader load(checkpoint, backend, *w.vectors, nullptr);
  if (parts.ends) {
    w.embed = load.matrix("embed_tokens.weight");
    load_head(load, checkpoint, w);
  }
  if (parts.vision && config.has_vision && w.tensor_parallel.rank == 0) w.vision = load_vision(load, config);
  load_layers(load, config, parts, w);
  return w;
}

DrafterWeights load_drafter_weights(const Checkpoint& checkpoint, const DrafterConfig& config, Backend& backend) {
  require_weights(checkpoint, config);
  DrafterWeights w;
  w.vectors = std::make_shared<OwnedTensors>(backend);
  const Loader load(checkpoint, backend, *w.vectors, nullptr);
  w.input = load.matrix("pre_projection.weight");
  for (int i = 0; i < config.text.layers; ++i) {
    const LayerDims dims = drafter_layer_dims(config, i);
    const std::string prefix = layer_prefix(kTextTower, i);
    w.layers.push_back(load.layer(prefix, dims, whole(dims)));
    w.layers.back().scalar = load.scalar(prefix + "layer_scalar");
  }
  w.norm = load.vector("norm.weight");
  w.head = load.matrix(checkpoint.find("lm_head.weight") ? "lm_head.weight" : "embed_tokens.weight");
  w.output = load.matrix("post_projection.weight");
  return w;
}

// In the order of the file.
void store_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, bool vision,
                   const WeightSink& sink) {
  Weights w = empty_weights(checkpoint, config, backend);
  const Loader load(checkpoint, backend, *w.vectors, &sink);
  w.embed = load.matrix("embed_tokens.weight");
  for (int i = 0; i < config.layers; ++i) load_layer(load, w, config, i);
  load_head(load, checkpoint, w);
  if (vision && config.has_vision) load_vision(load, config);
}

}  // namespace gemma4
