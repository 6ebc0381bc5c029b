#include "model/weights.h"

#include <set>

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
struct LayerShare {
  bool split = false;
  Share q, kv, mlp;
};

LayerShare whole(const Widths& w) { return {false, {0, w.q}, {0, w.kv}, {0, w.intermediate}}; }

LayerShare text_share(const Split& s, const Config& c, int i) {
  const Kind kind = c.kinds[static_cast<size_t>(i)];
  const int64_t dim = c.attention[kind].head_dim;
  const auto heads = [&](Share share) { return Share{share.begin * dim, share.count * dim}; };
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
  Loader(const Checkpoint& checkpoint, Backend& backend, Owned& owned)
      : checkpoint_(checkpoint), be_(backend), owned_(owned) {}

  const Matrix& host(const std::string& name) const { return checkpoint_.find(name)->matrix; }

  Matrix matrix(const std::string& name) const { return be_.upload({&host(name), 1}); }

  std::vector<float> values(const std::string& name) const {
    const Matrix& m = host(name);
    std::vector<float> out(static_cast<size_t>(m.rows * m.cols));
    for (int64_t r = 0; r < m.rows; ++r) unpack_row(m, r, out.data() + r * m.cols);
    return out;
  }

  Tensor vector(const std::string& name) const {
    const std::vector<float> host_values = values(name);
    const Tensor t = owned_.alloc(DType::kF32, {1, static_cast<int64_t>(host_values.size())});
    be_.write(t, host_values.data());
    return t;
  }

  Fused fused(const std::vector<Matrix>& parts) const {
    bool alike = true;
    for (const Matrix& m : parts) {
      alike =
          alike && m.format == parts[0].format && m.group == parts[0].group && m.scale.dtype == parts[0].scale.dtype;
    }
    Fused out;
    for (const Matrix& m : parts) {
      if (!alike) out.parts.push_back({be_.upload({&m, 1}), out.rows});
      out.rows += m.rows;
    }
    if (alike) out.parts.push_back({be_.upload(parts), 0});
    return out;
  }

  Matrix rows_of(const std::string& name, Share share) const {
    const Matrix rows = slice_rows(host(name), share.begin, share.count);
    return be_.upload({&rows, 1});
  }

  LayerWeights layer(const std::string& at, const Widths& widths, const LayerShare& share) const {
    const auto rows = [&](const char* name, Share s) { return slice_rows(host(at + name), s.begin, s.count); };
    const auto cols = [&](const char* name, Share s) { return slice_cols(host(at + name), s.begin, s.count); };
    LayerWeights w;
    w.split = share.split;
    std::vector<Matrix> qkv = {rows("self_attn.q_proj.weight", share.q), rows("self_attn.k_proj.weight", share.kv)};
    if (widths.has_v) qkv.push_back(rows("self_attn.v_proj.weight", share.kv));
    w.qkv = fused(qkv);
    const Matrix o = cols("self_attn.o_proj.weight", share.q), down = cols("mlp.down_proj.weight", share.mlp);
    w.o = be_.upload({&o, 1});
    w.gate_up = fused({rows("mlp.gate_proj.weight", share.mlp), rows("mlp.up_proj.weight", share.mlp)});
    w.down = be_.upload({&down, 1});
    w.input_norm = vector(at + "input_layernorm.weight");
    w.post_attention_norm = vector(at + "post_attention_layernorm.weight");
    w.pre_feedforward_norm = vector(at + "pre_feedforward_layernorm.weight");
    w.post_feedforward_norm = vector(at + "post_feedforward_layernorm.weight");
    w.q_norm = vector(at + "self_attn.q_norm.weight");
    w.k_norm = vector(at + "self_attn.k_norm.weight");
    return w;
  }

 private:
  const Checkpoint& checkpoint_;
  Backend& be_;
  Owned& owned_;
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

Weights load_weights(const Checkpoint& checkpoint, const Config& config, Backend& backend, bool vision) {
  const auto problems = check_weights(checkpoint, config);
  if (!problems.empty()) {
    const std::string more = problems.size() > 1 ? " (and " + std::to_string(problems.size() - 1) + " more)" : "";
    throw Error(checkpoint.path.string() + ": " + problems[0] + more);
  }
  Weights w;
  w.split = split_model(checkpoint, config, backend.rank(), backend.world());
  w.vectors = std::make_shared<Owned>(backend);
  const Loader load(checkpoint, backend, *w.vectors);
  w.embed = load.matrix("embed_tokens.weight");
  for (int i = 0; i < config.layers; ++i) {
    const std::string at = layer_name(kText, i);
    w.layers.push_back(load.layer(at, text_widths(config, i), text_share(w.split, config, i)));
    w.layers.back().scalar = load.values(at + "layer_scalar")[0];
  }
  w.norm = load.vector("norm.weight");
  // Where the checkpoint ties the head to the embedding, a backend alone keeps one copy and reads it both ways. Several
  // need the whole table for embedding and its share for the head.
  const bool own_head = checkpoint.find("lm_head.weight") != nullptr;
  w.head = w.split.world == 1 && !own_head
               ? w.embed
               : load.rows_of(own_head ? "lm_head.weight" : "embed_tokens.weight", w.split.ids());
  if (vision && config.has_vision && w.split.rank == 0) w.vision = load_vision(load, config);
  return w;
}

}  // namespace gemma4
