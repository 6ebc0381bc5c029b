#include "program/methods.h"

#include "base/check.h"
#include "base/json.h"

namespace gemma4 {
namespace {

using nlohmann::ordered_json;

constexpr ElementType kFloat = ElementType::kFloat32, kInt = ElementType::kInt64;

Dimension fixed(int64_t size) { return {"", 1, size, size}; }

const char* type_name(ElementType type) {
  return type == ElementType::kFloat32 ? "float32" : type == ElementType::kInt64 ? "int64" : "bool";
}

ordered_json spec_json(const TensorSpec& spec, ordered_json& ranges) {
  ordered_json shape = ordered_json::array();
  for (const Dimension& d : spec.shape) {
    if (d.symbol.empty()) {
      shape.push_back(d.least);
      continue;
    }
    shape.push_back((d.multiple > 1 ? std::to_string(d.multiple) + "*" : "") + d.symbol);
    ranges[d.symbol] = {d.least, d.most};
  }
  ordered_json out = {{"name", spec.name}, {"type", type_name(spec.type)}, {"shape", shape}};
  if (spec.optional) out["optional"] = true;
  return out;
}

}  // namespace

std::vector<MethodSpec> methods_of(const Config& config, const ProgramLimits& limits) {
  const Dimension one = fixed(1), hidden = fixed(config.hidden);
  const Dimension rows = {"T", 1, 2, limits.chunk};
  const TensorSpec temperature = {"temperature", kFloat, {one}}, token = {"token", kInt, {one, one}};
  MethodSpec prefill = {"prefill", {{"tokens", kInt, {one, rows}}, {"input_pos", kInt, {rows}}, temperature}, {token}};
  const MethodSpec decode = {
      "decode", {{"tokens", kInt, {one, one}}, {"input_pos", kInt, {one}}, temperature}, {token}};
  if (limits.soft_max == 0) return {prefill, decode};
  prefill.inputs[0] = {"inputs_embeds", kFloat, {one, rows, hidden}};
  prefill.inputs.push_back({"image_ends", kInt, {rows}, true});
  const Dimension some = {"T", 1, 1, limits.chunk};
  const MethodSpec embed_text = {
      "embed_text", {{"tokens", kInt, {one, some}}}, {{"embeddings", kFloat, {one, some, hidden}}}};
  const int64_t cell = int64_t{config.vision.pool} * config.vision.pool;
  const Dimension patches = {"N", cell, 1, limits.soft_max}, soft = {"N", 1, 1, limits.soft_max};
  const MethodSpec encoder = {"vision_encoder",
                              {{"pixel_values", kFloat, {one, patches, fixed(config.vision.patch_dim())}},
                               {"pixel_position_ids", kInt, {one, patches, fixed(2)}}},
                              {{"embeddings", kFloat, {one, soft, hidden}}, {"mask", ElementType::kBool, {one, soft}}}};
  return {embed_text, encoder, prefill, decode};
}

std::string methods_json(const std::vector<MethodSpec>& methods) {
  ordered_json out = ordered_json::object();
  for (const MethodSpec& method : methods) {
    ordered_json inputs = ordered_json::array(), outputs = ordered_json::array(), ranges = ordered_json::object();
    for (const TensorSpec& spec : method.inputs) inputs.push_back(spec_json(spec, ranges));
    for (const TensorSpec& spec : method.outputs) outputs.push_back(spec_json(spec, ranges));
    out[method.name] = {{"inputs", inputs}, {"outputs", outputs}, {"ranges", ranges}};
  }
  return out.dump();
}

std::vector<std::pair<std::string, int64_t>> constants_of(const Config& config, const ProgramLimits& limits) {
  std::vector<std::pair<std::string, int64_t>> out = {{"get_max_seq_len", limits.max_seq_len},
                                                      {"get_vocab_size", config.vocab},
                                                      {"get_n_layers", config.layers},
                                                      {"get_max_prefill_chunk", limits.chunk},
                                                      {"use_kv_cache", 1},
                                                      {"use_sdpa_with_kv_cache", 0},
                                                      {"enable_dynamic_shape", 1}};
  if (limits.soft_max > 0) out.emplace_back("get_max_vision_soft_tokens", limits.soft_max);
  return out;
}

ProgramLimits limits_of(const std::map<std::string, int64_t>& constants, const Config& config,
                        const std::string& what) {
  const auto constant = [&](const char* name, int64_t least, int64_t most) {
    const auto it = constants.find(name);
    if (it == constants.end()) throw Error(what + ": program.json has no constant " + name);
    if (it->second < least || it->second > most) {
      throw Error(what + ": the constant " + name + " of program.json is " + std::to_string(it->second) + ", not " +
                  std::to_string(least) + " to " + std::to_string(most));
    }
    return static_cast<int>(it->second);
  };
  ProgramLimits limits;
  constant("get_vocab_size", config.vocab, config.vocab);
  constant("get_n_layers", config.layers, config.layers);
  limits.max_seq_len = constant("get_max_seq_len", 3, config.max_positions > 0 ? config.max_positions : 1 << 30);
  limits.chunk = constant("get_max_prefill_chunk", 2, limits.max_seq_len - 1);
  if (config.has_vision) limits.soft_max = constant("get_max_vision_soft_tokens", 1, 1 << 20);
  return limits;
}

}  // namespace gemma4
