#include "model/tensor_table.h"

#include <set>

#include "model/weights.h"

namespace gemma4 {
namespace {

std::vector<LayerTensor> make_layer_tensors(LayerKv makes) {
  using enum LayerDim;
  using W = LayerWeights;
  std::vector<LayerTensor> table = {{"self_attn.q_proj.weight", {kQ, kHidden}, &W::qkv}};
  if (makes != LayerKv::kNone) table.push_back({"self_attn.k_proj.weight", {kKv, kHidden}, &W::qkv});
  if (makes == LayerKv::kBoth) table.push_back({"self_attn.v_proj.weight", {kKv, kHidden}, &W::qkv});
  table.insert(table.end(), {
                                {"self_attn.o_proj.weight", {kHidden, kQ}, &W::o},
                                {"mlp.gate_proj.weight", {kIntermediate, kHidden}, &W::gate_up},
                                {"mlp.up_proj.weight", {kIntermediate, kHidden}, &W::gate_up},
                                {"mlp.down_proj.weight", {kHidden, kIntermediate}, &W::down},
                                {"input_layernorm.weight", {kHidden}, &W::input_norm},
                                {"post_attention_layernorm.weight", {kHidden}, &W::post_attention_norm},
                                {"pre_feedforward_layernorm.weight", {kHidden}, &W::pre_feedforward_norm},
                                {"post_feedforward_layernorm.weight", {kHidden}, &W::post_feedforward_norm},
                                {"self_attn.q_norm.weight", {kHeadDim}, &W::q_norm},
                            });
  if (makes != LayerKv::kNone) table.push_back({"self_attn.k_norm.weight", {kHeadDim}, &W::k_norm});
  return table;
}

void need_layer(std::vector<TensorNeed>& out, const std::string& prefix, const LayerDims& dims) {
  for (const LayerTensor& tensor : layer_tensors(dims.makes)) {
    std::vector<int64_t> shape;
    for (const LayerDim dim : tensor.shape) shape.push_back(dims[dim]);
    out.push_back({prefix + tensor.name, shape});
  }
}

void need_vision(std::vector<TensorNeed>& out, const Config& c) {
  const VisionConfig& v = c.vision;
  out.push_back({"vision_tower.patch_embedder.input_proj.weight", {v.hidden, v.patch_dim()}});
  out.push_back({"vision_tower.patch_embedder.position_embedding_table", {2, v.positions, v.hidden}});
  for (int i = 0; i < v.layers; ++i) need_layer(out, layer_prefix(kVisionTower, i), vision_layer_dims(v));
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

}  // namespace

int64_t LayerDims::operator[](LayerDim dim) const {
  switch (dim) {
    case LayerDim::kHidden:
      return hidden;
    case LayerDim::kIntermediate:
      return intermediate;
    case LayerDim::kQ:
      return q;
    case LayerDim::kKv:
      return kv;
    case LayerDim::kHeadDim:
      return head_dim;
  }
  CHECK(false);
  return 0;
}

LayerDims text_layer_dims(const Config& c, int layer) {
  const AttentionConfig& a = c.attention[c.kinds[static_cast<size_t>(layer)]];
  return {c.hidden,
          c.intermediate,
          int64_t{a.heads} * a.head_dim,
          int64_t{a.kv_heads} * a.head_dim,
          a.head_dim,
          a.k_is_v ? LayerKv::kShared : LayerKv::kBoth};
}

LayerDims drafter_layer_dims(const DrafterConfig& c, int layer) {
  LayerDims dims = text_layer_dims(c.text, layer);
  dims.kv = 0, dims.makes = LayerKv::kNone;
  return dims;
}

LayerDims vision_layer_dims(const VisionConfig& v) {
  const int64_t width = int64_t{v.heads} * v.head_dim;
  return {v.hidden, v.intermediate, width, width, v.head_dim, LayerKv::kBoth};
}

const std::vector<LayerTensor>& layer_tensors(LayerKv makes) {
  static const std::vector<LayerTensor> both = make_layer_tensors(LayerKv::kBoth),
                                        shared = make_layer_tensors(LayerKv::kShared),
                                        none = make_layer_tensors(LayerKv::kNone);
  return makes == LayerKv::kBoth ? both : makes == LayerKv::kShared ? shared : none;
}

std::string layer_prefix(const char* tower, int layer) {
  return std::string(tower) + "layers." + std::to_string(layer) + ".";
}

std::vector<TensorNeed> needed_tensors(const Config& config, bool vision) {
  std::vector<TensorNeed> out;
  out.push_back({"embed_tokens.weight", {config.vocab, config.hidden}});
  for (int i = 0; i < config.layers; ++i) {
    need_layer(out, layer_prefix(kTextTower, i), text_layer_dims(config, i));
    out.push_back({layer_prefix(kTextTower, i) + "layer_scalar", {1}});
  }
  out.push_back({"norm.weight", {config.hidden}});
  out.push_back({"lm_head.weight", {config.vocab, config.hidden}, config.tied});
  if (vision && config.has_vision) need_vision(out, config);
  return out;
}

std::vector<TensorNeed> needed_tensors(const DrafterConfig& config) {
  const Config& own = config.text;
  std::vector<TensorNeed> out;
  out.push_back({"embed_tokens.weight", {own.vocab, own.hidden}});
  for (int i = 0; i < own.layers; ++i) {
    need_layer(out, layer_prefix(kTextTower, i), drafter_layer_dims(config, i));
    out.push_back({layer_prefix(kTextTower, i) + "layer_scalar", {1}});
  }
  out.push_back({"norm.weight", {own.hidden}});
  out.push_back({"lm_head.weight", {own.vocab, own.hidden}, own.tied});
  out.push_back({"pre_projection.weight", {own.hidden, 2 * int64_t{config.backbone_hidden}}});
  out.push_back({"post_projection.weight", {config.backbone_hidden, own.hidden}});
  return out;
}

namespace {

std::vector<std::string> compare(const Checkpoint& checkpoint, const std::vector<TensorNeed>& needs) {
  std::vector<std::string> problems;
  std::set<std::string> known;
  for (const TensorNeed& need : needs) {
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

void require(const Checkpoint& checkpoint, const std::vector<std::string>& problems) {
  if (problems.empty()) return;
  throw Error(checkpoint.path.string() + ": " + problems[0] +
              (problems.size() > 1 ? " (and " + std::to_string(problems.size() - 1) + " more)" : ""));
}

}  // namespace

std::vector<std::string> check_weights(const Checkpoint& checkpoint, const Config& config) {
  return compare(checkpoint, needed_tensors(config, true));
}

std::vector<std::string> check_weights(const Checkpoint& checkpoint, const DrafterConfig& config) {
  return compare(checkpoint, needed_tensors(config));
}

void require_weights(const Checkpoint& checkpoint, const Config& config) {
  require(checkpoint, check_weights(checkpoint, config));
}

void require_weights(const Checkpoint& checkpoint, const DrafterConfig& config) {
  require(checkpoint, check_weights(checkpoint, config));
}

}  // namespace gemma4
