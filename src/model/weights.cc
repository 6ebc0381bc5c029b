#include "model/weights.h"

#include <algorithm>
#include <set>

#include "checkpoint/program_file.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

std::string layer_name(const char* tower, int i) { return std::string(tower) + "layers." + std::to_string(i) + "."; }
constexpr const char* kText = "";
constexpr const char* kVision = "vision_tower.encoder.";

struct Widths {
  int64_t hidden, intermediate, q, kv, head_dim;
  bool has_v;
};

Widths text_widths(const Config& c, int i) {
  const AttentionConfig& a = c.attention[c.kinds[static_cast<size_t>(i)]];
  return {c.hidden,   c.intermediate, int64_t{a.heads} * a.head_dim, int64_t{a.kv_heads} * a.head_dim,
          a.head_dim, !a.k_is_v};
}

Widths vision_widths(const VisionConfig& v) {
  const int64_t width = int64_t{v.heads} * v.head_dim;
  return {v.hidden, v.intermediate, width, width, v.head_dim, true};
}

// The part of a layer that one rank holds: elements of its q, k or v, and columns of its MLP.
struct LayerShards {
  bool partial_sums = false;
  ShardRange q, kv, mlp;
};

LayerShards whole(const Widths& w) { return {false, {0, w.q}, {0, w.kv}, {0, w.intermediate}}; }

LayerShards text_shards(const TensorParallel& s, const Config& c, int i) {
  const AttentionKind kind = c.kinds[static_cast<size_t>(i)];
  const int64_t dim = c.attention[kind].head_dim;
  const auto heads = [&](ShardRange range) { return ShardRange{range.begin * dim, range.count * dim}; };
  return {s.world > 1, heads(s.heads[kind]), heads(s.kv_heads[kind]), s.mlp};
}

void need_layer(std::vector<TensorNeed>& out, const std::string& at, const Widths& w) {
  out.push_back({at + "self_attn.q_proj.weight", {w.q, w.hidden}});
  out.push_back({at + "self_attn.k_proj.weight", {w.kv, w.hidden}});
  if (w.has_v) out.push_back({at + "self_attn.v_proj.weight", {w.kv, w.hidden}});
  out.push_back({at + "self_attn.o_proj.weight", {w.hidden, w.q}});
  out.push_back({at + "self_attn.q_norm.weight", {w.head_dim}});
  out.push_back({at + "self_attn.k_norm.weight", {w.head_dim}});
  out.push_back({at + "mlp.gate_proj.weight", {w.intermediate, w.hidden}});
  out.push_back({at + "mlp.up_proj.weight", {w.intermediate, w.hidden}});
  out.push_back({at + "mlp.down_proj.weight", {w.hidden, w.intermediate}});
  for (const char* norm : {"input", "post_attention", "pre_feedforward", "post_feedforward"}) {
    out.push_back({at + norm + "_layernorm.weight", {w.hidden}});
  }
}

void need_vision(std::vector<TensorNeed>& out, const Config& c) {
  const VisionConfig& v = c.vision;
  out.push_back({"vision_tower.patch_embedder.input_proj.weight", {v.hidden, v.patch_dim()}});
  out.push_back({"vision_tower.patch_embedder.position_embedding_table", {2, v.positions, v.hidden}});
  for (int i = 0; i < v.layers; ++i) need_layer(out, layer_name(kVision, i), vision_widths(v));
  if (v.standardize) {
    out.push_back({"vision_tower.std_bias", {v.hidden}});
    out.push_back({"vision_tower.std_scale", {v.hidden}});
  }
  out.push_back({"embed_vision.embedding_projection.weight", {c.hidden, v.hidden}});
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

class Loader {
 public:
  // `sink`: takes every weight instead of the backend, or null.
  Loader(const Checkpoint& checkpoint, Backend& backend, Owned& owned, const WeightSink* sink)
      : checkpoint_(checkpoint), be_(backend), owned_(owned), sink_(sink) {}

  const Matrix& host(const std::string& name) const { return checkpoint_.find(name)->matrix; }

  Matrix matrix(const std::string& name) const { return place({&name, 1}, {&host(name), 1}); }

  // `parts`, stacked, as a matrix of the backend; `names` are theirs.
  Matrix place(std::span<const std::string> names, std::span<const Matrix> parts) const {
    if (checkpoint_.program) return be_.load_prepacked(stored(names).stored);
    const Matrix m = be_.upload(parts);
    if (!sink_) return m;
    sink_->matrix(names, be_.serialize(m));
    return Matrix();
  }

  float scalar(const std::string& name) const {
    if (sink_) sink_->vector(name, values(name));
    return values(name)[0];
  }

  std::vector<float> values(const std::string& name) const {
    const Matrix& m = host(name);
    if (!m.codes) throw Error(checkpoint_.path.string() + ": tensor " + name + " is not kept as a vector");
    std::vector<float> out(static_cast<size_t>(m.rows * m.cols));
    for (int64_t r = 0; r < m.rows; ++r) unpack_row(m, r, out.data() + r * m.cols);
    return out;
  }

  Tensor vector(const std::string& name) const {
    const std::vector<float> host_values = values(name);
    if (sink_) return sink_->vector(name, host_values), Tensor();
    const Tensor t = owned_.alloc(DType::kF32, {1, static_cast<int64_t>(host_values.size())});
    be_.write(t, host_values.data());
    return t;
  }

  Fused fused(const std::vector<std::string>& names, const std::vector<Matrix>& parts) const {
    const bool alike = stackable(names, parts);
    Fused out;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (!alike) out.parts.push_back({place({&names[i], 1}, {&parts[i], 1}), out.rows});
      out.rows += parts[i].rows;
    }
    if (alike) out.parts.push_back({place(names, parts), 0});
    return out;
  }

  // This rank's rows, or columns; all of them as they are.
  Matrix rows(const std::string& name, ShardRange range) const {
    const Matrix& m = host(name);
    return range.count == m.rows ? m : slice_rows(m, range.begin, range.count);
  }

  Matrix cols(const std::string& name, ShardRange range) const {
    const Matrix& m = host(name);
    return range.count == m.cols ? m : slice_cols(m, range.begin, range.count);
  }

  Matrix rows_of(const std::string& name, ShardRange range) const {
    const Matrix part = rows(name, range);
    return place({&name, 1}, {&part, 1});
  }

  Matrix cols_of(const std::string& name, ShardRange range) const {
    const Matrix part = cols(name, range);
    return place({&name, 1}, {&part, 1});
  }

  LayerWeights layer(const std::string& at, const Widths& widths, const LayerShards& shards) const {
    std::vector<std::string> qkv = {at + "self_attn.q_proj.weight", at + "self_attn.k_proj.weight"};
    if (widths.has_v) qkv.push_back(at + "self_attn.v_proj.weight");
    const std::vector<std::string> gate_up = {at + "mlp.gate_proj.weight", at + "mlp.up_proj.weight"};
    std::vector<Matrix> qkv_parts;
    for (const std::string& name : qkv) qkv_parts.push_back(rows(name, name == qkv[0] ? shards.q : shards.kv));
    LayerWeights w;
    w.partial_sums = shards.partial_sums;
    w.qkv = fused(qkv, qkv_parts);
    w.o = cols_of(at + "self_attn.o_proj.weight", shards.q);
    w.gate_up = fused(gate_up, {rows(gate_up[0], shards.mlp), rows(gate_up[1], shards.mlp)});
    w.down = cols_of(at + "mlp.down_proj.weight", shards.mlp);
    w.input_norm = vector(at + "input_layernorm.weight");
    w.post_attention_norm = vector(at + "post_attention_layernorm.weight");
    w.pre_feedforward_norm = vector(at + "pre_feedforward_layernorm.weight");
    w.post_feedforward_norm = vector(at + "post_feedforward_layernorm.weight");
    w.q_norm = vector(at + "self_attn.q_norm.weight");
    w.k_norm = vector(at + "self_attn.k_norm.weight");
    return w;
  }

 private:
  // Does the model multiply by these at once? A program says so; otherwise matrices stored alike are stacked.
  bool stackable(const std::vector<std::string>& names, const std::vector<Matrix>& parts) const {
    if (checkpoint_.program) {
      const auto it = checkpoint_.program->matrices.find(names[0]);
      return it != checkpoint_.program->matrices.end() && it->second.parts.size() == names.size();
    }
    return std::ranges::all_of(parts, [&](const Matrix& m) {
      return m.format == parts[0].format && m.group == parts[0].group && m.scale.dtype == parts[0].scale.dtype;
    });
  }

  const ProgramMatrix& stored(std::span<const std::string> names) const {
    const auto it = checkpoint_.program->matrices.find(names[0]);
    if (it == checkpoint_.program->matrices.end() || !std::ranges::equal(it->second.parts, names)) {
      throw Error(checkpoint_.path.string() + ": tensor " + names[0] + " is not stacked as this program multiplies");
    }
    return it->second;
  }

  const Checkpoint& checkpoint_;
  Backend& be_;
  Owned& owned_;
  const WeightSink* sink_;
};

VisionWeights load_vision(const Loader& load, const Config& config) {
  VisionWeights v;
  v.input = load.matrix("vision_tower.patch_embedder.input_proj.weight");
  v.positions = load.matrix("vision_tower.patch_embedder.position_embedding_table");
  for (int i = 0; i < config.vision.layers; ++i) {
    v.layers.push_back(
        load.layer(layer_name(kVision, i), vision_widths(config.vision), whole(vision_widths(config.vision))));
  }
  if (config.vision.standardize) {
    v.std_bias = load.vector("vision_tower.std_bias");
    v.std_scale = load.vector("vision_tower.std_scale");
  }
  v.projection = load.matrix("embed_vision.embedding_projection.weight");
  return v;
}

// A program's bytes are the layout of the backend that made it.
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

}  // namespace

std::vector<TensorNeed> needed_tensors(const Config& config, bool vision) {
  std::vector<TensorNeed> out;
  out.push_back({"embed_tokens.weight", {config.vocab, config.hidden}});
  for (int i = 0; i < config.layers; ++i) {
    need_layer(out, layer_name(kText, i), text_widths(config, i));
    out.push_back({layer_name(kText, i) + "layer_scalar", {1}});
  }
  out.push_back({"norm.weight", {config.hidden}});
  out.push_back({"lm_head.weight", {config.vocab, config.hidden}, config.tied});
  if (vision && config.has_vision) need_vision(out, config);
  return out;
}

std::vector<std::string> check_weights(const Checkpoint& checkpoint, const Config& config) {
  std::vector<std::string> problems;
  std::set<std::string> known;
  for (const TensorNeed& need : needed_tensors(config, true)) {
    known.insert(need.name);
    const Weight* weight = checkpoint.find(need.name);
    if (!weight && !need.optional) problems.push_back("tensor " + need.name + " is missing");
    if (weight && weight->shape != need.shape) {
      problems.push_back("tensor " + need.name + " has shape " + shape_text(weight->shape) + ", config.json asks for " +
                         shape_text(need.shape));
    }
  }
  for (const auto& [name, weight] : checkpoint.weights) {
    if (!known.count(name)) problems.push_back("tensor " + name + " is not part of this model");
  }
  return problems;
}

void require_weights(const Checkpoint& checkpoint, const Config& config) {
  const std::vector<std::string> problems = check_weights(checkpoint, config);
  if (problems.empty()) return;
  throw Error(checkpoint.path.string() + ": " + problems[0] +
              (problems.size() > 1 ? " (and " + std::to_string(problems.size() - 1) + " more)" : ""));
}

namespace {

Weights place_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, bool vision,
                      const WeightSink* sink) {
  if (checkpoint.program) check_program(checkpoint, backend);
  require_weights(checkpoint, config);
  Weights w;
  w.tensor_parallel = shard_model(checkpoint, config, backend.rank(), backend.world());
  w.vectors = std::make_shared<Owned>(backend);
  const Loader load(checkpoint, backend, *w.vectors, sink);
  w.embed = load.matrix("embed_tokens.weight");
  for (int i = 0; i < config.layers; ++i) {
    const std::string at = layer_name(kText, i);
    w.layers.push_back(load.layer(at, text_widths(config, i), text_shards(w.tensor_parallel, config, i)));
    w.layers.back().scalar = load.scalar(at + "layer_scalar");
  }
  w.norm = load.vector("norm.weight");
  // Where the checkpoint ties the head to the embedding, a backend alone keeps one copy and reads it both ways. Several
  // need the whole table for embedding and its share for the head.
  const bool own_head = checkpoint.find("lm_head.weight") != nullptr;
  w.head = w.tensor_parallel.world == 1 && !own_head
               ? w.embed
               : load.rows_of(own_head ? "lm_head.weight" : "embed_tokens.weight", w.tensor_parallel.ids());
  if (vision && config.has_vision && w.tensor_parallel.rank == 0) w.vision = load_vision(load, config);
  return w;
}

}  // namespace

Weights load_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, bool vision) {
  return place_weights(checkpoint, config, backend, vision, nullptr);
}

void store_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, bool vision,
                   const WeightSink& sink) {
  place_weights(checkpoint, config, backend, vision, &sink);
}

}  // namespace gemma4
