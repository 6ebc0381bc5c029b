#include "checkpoint/names.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>

namespace gemma4 {
namespace {

// '#' stands for a layer index. Rows of one section that hold a '#' are listed layer by layer.
struct TensorName {
  int section;             // order of the state dict
  std::string_view model;  // the model's name
  std::string_view gguf;   // llama.cpp's; empty: none
  bool buffer = false;
};

constexpr TensorName kNames[] = {
    {0, "embed_tokens.weight", "token_embd.weight"},
    {1, "layers.#.self_attn.q_proj.weight", "blk.#.attn_q.weight"},
    {1, "layers.#.self_attn.k_proj.weight", "blk.#.attn_k.weight"},
    {1, "layers.#.self_attn.v_proj.weight", "blk.#.attn_v.weight"},
    {1, "layers.#.self_attn.o_proj.weight", "blk.#.attn_output.weight"},
    {1, "layers.#.self_attn.q_norm.weight", "blk.#.attn_q_norm.weight"},
    {1, "layers.#.self_attn.k_norm.weight", "blk.#.attn_k_norm.weight"},
    {1, "layers.#.mlp.gate_proj.weight", "blk.#.ffn_gate.weight"},
    {1, "layers.#.mlp.up_proj.weight", "blk.#.ffn_up.weight"},
    {1, "layers.#.mlp.down_proj.weight", "blk.#.ffn_down.weight"},
    {1, "layers.#.input_layernorm.weight", "blk.#.attn_norm.weight"},
    {1, "layers.#.post_attention_layernorm.weight", "blk.#.post_attention_norm.weight"},
    {1, "layers.#.pre_feedforward_layernorm.weight", "blk.#.ffn_norm.weight"},
    {1, "layers.#.post_feedforward_layernorm.weight", "blk.#.post_ffw_norm.weight"},
    {2, "norm.weight", "output_norm.weight"},
    {2, "lm_head.weight", "output.weight"},
    {2, "pre_projection.weight", "nextn.pre_projection.weight"},
    {2, "post_projection.weight", "nextn.post_projection.weight"},
    {2, "vision_tower.patch_embedder.input_proj.weight", "v.patch_embd.weight"},
    {3, "vision_tower.encoder.layers.#.self_attn.q_proj.weight", "v.blk.#.attn_q.weight"},
    {3, "vision_tower.encoder.layers.#.self_attn.k_proj.weight", "v.blk.#.attn_k.weight"},
    {3, "vision_tower.encoder.layers.#.self_attn.v_proj.weight", "v.blk.#.attn_v.weight"},
    {3, "vision_tower.encoder.layers.#.self_attn.o_proj.weight", "v.blk.#.attn_out.weight"},
    {3, "vision_tower.encoder.layers.#.self_attn.q_norm.weight", "v.blk.#.attn_q_norm.weight"},
    {3, "vision_tower.encoder.layers.#.self_attn.k_norm.weight", "v.blk.#.attn_k_norm.weight"},
    {3, "vision_tower.encoder.layers.#.mlp.gate_proj.weight", "v.blk.#.ffn_gate.weight"},
    {3, "vision_tower.encoder.layers.#.mlp.up_proj.weight", "v.blk.#.ffn_up.weight"},
    {3, "vision_tower.encoder.layers.#.mlp.down_proj.weight", "v.blk.#.ffn_down.weight"},
    {3, "vision_tower.encoder.layers.#.input_layernorm.weight", "v.blk.#.ln1.weight"},
    {3, "vision_tower.encoder.layers.#.post_attention_layernorm.weight", "v.blk.#.attn_post_norm.weight"},
    {3, "vision_tower.encoder.layers.#.pre_feedforward_layernorm.weight", "v.blk.#.ln2.weight"},
    {3, "vision_tower.encoder.layers.#.post_feedforward_layernorm.weight", "v.blk.#.ffn_post_norm.weight"},
    {4, "embed_vision.embedding_projection.weight", "mm.input_projection.weight"},
    {5, "layers.#.layer_scalar", "blk.#.layer_output_scale.weight", true},
    {6, "vision_tower.std_bias", "v.std_bias", true},
    {6, "vision_tower.std_scale", "v.std_scale", true},
    {6, "vision_tower.patch_embedder.position_embedding_table", "v.position_embd.weight", true},
};

constexpr int kLayersMax = 100'000;  // of a name; a model has far fewer

// "layers.12.x" -> {"layers.#.x", 12}: the first all-digit component between dots. Leading zeros are another name.
struct IndexedName {
  std::string pattern;
  int layer = -1;
};

IndexedName parse_index(std::string_view name) {
  for (size_t begin = 0; begin < name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view component = name.substr(begin, end - begin);
    int value = 0;
    const auto [last, error] = std::from_chars(component.data(), component.data() + component.size(), value);
    const bool number = !component.empty() && error == std::errc() && last == component.data() + component.size() &&
                        value >= 0 && value < kLayersMax && component == std::to_string(value);
    if (number) return {std::string(name.substr(0, begin)) + "#" + std::string(name.substr(end)), value};
    begin = end + 1;
  }
  return {std::string(name), -1};
}

std::string fill(std::string_view pattern, int layer) {
  std::string name(pattern);
  if (const size_t at = name.find('#'); at != std::string::npos) name.replace(at, 1, std::to_string(layer));
  return name;
}

const TensorName* find_model(const IndexedName& name) {
  static const auto index = [] {
    std::map<std::string_view, const TensorName*> by_name;
    for (const TensorName& row : kNames) by_name[row.model] = &row;
    return by_name;
  }();
  const auto it = index.find(name.pattern);
  if (it == index.end() || (name.layer < 0 && name.pattern.find('#') != std::string::npos)) return nullptr;
  return it->second;
}

bool drop_prefix(std::string_view& name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return false;
  name.remove_prefix(prefix.size());
  return true;
}

}  // namespace

std::string from_huggingface_name(std::string_view name) {
  while (drop_prefix(name, "model.") || drop_prefix(name, "language_model.")) {
  }
  std::string result(name);
  constexpr std::string_view kLinear = "_proj.linear.weight";
  if (result.starts_with("vision_tower.encoder.") && result.ends_with(kLinear)) {
    result.replace(result.size() - kLinear.size(), kLinear.size(), "_proj.weight");
  }
  return result;
}

std::string to_huggingface_name(std::string_view name) {
  if (name.starts_with("lm_head.")) return std::string(name);
  if (!is_vision_tensor(name)) return "model.language_model." + std::string(name);
  std::string result = "model." + std::string(name);
  constexpr std::string_view kProjection = "_proj.weight";
  if (name.starts_with("vision_tower.encoder.") && name.ends_with(kProjection)) {
    result.replace(result.size() - kProjection.size(), kProjection.size(), "_proj.linear.weight");
  }
  return result;
}

std::string to_huggingface_drafter_name(std::string_view name) {
  const bool outer = name == "lm_head.weight" || name == "pre_projection.weight" || name == "post_projection.weight";
  return (outer ? "" : "model.") + std::string(name);
}

std::optional<std::string> from_gguf_name(std::string_view name) {
  const IndexedName indexed = parse_index(name);
  if (name.find('#') != std::string_view::npos) return std::nullopt;
  for (const TensorName& row : kNames) {
    if (!row.gguf.empty() && row.gguf == indexed.pattern) return fill(row.model, indexed.layer);
  }
  return std::nullopt;
}

std::optional<std::string> to_gguf_name(std::string_view name) {
  const IndexedName indexed = parse_index(name);
  const TensorName* row = find_model(indexed);
  if (row == nullptr || row->gguf.empty()) return std::nullopt;
  return fill(row->gguf, indexed.layer);
}

bool is_model_tensor(std::string_view name) { return find_model(parse_index(name)) != nullptr; }

bool is_vision_tensor(std::string_view name) {
  return name.starts_with("vision_tower.") || name.starts_with("embed_vision.");
}

void sort_as_state_dict(std::vector<std::string>& names) {
  const auto key = [](const std::string& name) {
    const IndexedName indexed = parse_index(name);
    const TensorName* row = find_model(indexed);
    const int section = row ? row->section : 1000;
    const auto position = row ? row - kNames : 0;
    return std::make_tuple(section, indexed.layer, position, row ? std::string() : name);
  };
  std::stable_sort(names.begin(), names.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
}

bool is_buffer(std::string_view name) {
  const TensorName* row = find_model(parse_index(name));
  return row != nullptr && row->buffer;
}

}  // namespace gemma4
