#include "model/config.h"

#include <algorithm>
#include <cmath>

#include "base/bf16.h"
#include "base/check.h"
#include "base/json.h"

namespace gemma4 {
namespace {

using nlohmann::json;

// Largest value accepted for a size in a config: far beyond any Gemma, and small enough that products of three fit
// int64.
constexpr int64_t kSizeMax = 1 << 20;

constexpr std::array<const char*, kAttentionKinds> kKindNames = {"sliding_attention", "full_attention"};

constexpr const char* kDrafterType = "gemma4_assistant";

class ConfigObject {
 public:
  ConfigObject(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) throw Error(where_ + " is not a JSON object");
  }

  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  const json& at(const char* key) const { return object_[key]; }
  std::string path(const char* key) const { return where_ + "." + key; }

  template <typename T>
  T get(const char* key, T fallback) const {
    if (!has(key)) return fallback;
    try {
      return object_[key].get<T>();
    } catch (const json::exception&) {
      throw Error(path(key) + " has the wrong type: " + object_[key].dump().substr(0, 80));
    }
  }

  int size(const char* key, int fallback) const {
    if (has(key) && !object_[key].is_number_integer()) throw Error(path(key) + " is not a whole number");
    const int64_t value = get<int64_t>(key, fallback);
    if (value < 1 || value > kSizeMax) {
      throw Error(path(key) + " is " + std::to_string(value) + ", outside 1.." + std::to_string(kSizeMax));
    }
    return static_cast<int>(value);
  }

  int size(const char* key) const {
    if (!has(key)) throw Error(where_ + " has no field '" + key + "'");
    return size(key, 1);
  }

  double positive(const char* key) const {
    if (!has(key)) throw Error(where_ + " has no field '" + key + "'");
    return positive(key, 1);
  }

  double positive(const char* key, double fallback) const {
    const double value = get<double>(key, fallback);
    if (!(value > 0) || !std::isfinite(value)) throw Error(path(key) + " must be a positive number");
    return value;
  }

  // A field that, with any other value than `harmless`, would change the arithmetic.
  void refuse_unless(const char* key, const json& harmless, const char* what) const {
    if (has(key) && object_[key] != harmless) {
      throw Error(path(key) + " is " + object_[key].dump().substr(0, 80) + ": " + what + " is not implemented");
    }
  }

  void refuse_others(const std::vector<std::string>& known) const {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(known.begin(), known.end(), key) == known.end()) {
        throw Error(path(key.c_str()) + " is set for one layer, which is not implemented");
      }
    }
  }

 private:
  const json& object_;
  std::string where_;
};

json parse(const std::string& text, const char* what) {
  json object = read_json_or_discard<json>(text);
  if (object.is_discarded()) throw Error(std::string(what) + " is not valid JSON");
  if (!object.is_object()) throw Error(std::string(what) + " is not a JSON object");
  return object;
}

std::vector<int> id_list(const ConfigObject& fields, const char* key) {
  if (!fields.has(key)) return {};
  const json& value = fields.at(key);
  std::vector<int> ids;
  for (const json& id : value.is_array() ? value : json::array({value})) {
    if (!id.is_number_integer() || id < 0 || id > kSizeMax)
      throw Error(fields.path(key) + " is not a list of token ids");
    ids.push_back(id.get<int>());
  }
  return ids;
}

void refuse_other_variants(const ConfigObject& top, const ConfigObject& text) {
  top.refuse_unless("audio_config", nullptr, "audio input");
  text.refuse_unless("hidden_size_per_layer_input", 0, "per-layer embeddings");
  text.refuse_unless("enable_moe_block", false, "a mixture of experts");
  text.refuse_unless("num_experts", 0, "a mixture of experts");
  text.refuse_unless("use_double_wide_mlp", false, "a double-wide MLP");
  text.refuse_unless("attention_bias", false, "attention bias");
  text.refuse_unless("hidden_activation", "gelu_pytorch_tanh", "another activation than gelu_pytorch_tanh");
  text.refuse_unless("use_bidirectional_attention", "vision", "another bidirectional attention than \"vision\"");
  for (const char* key : {"rope_scaling", "attn_logit_softcapping", "query_pre_attn_scalar", "altup_num_inputs"}) {
    text.refuse_unless(key, nullptr, "this field");
  }
  if (text.has("model_type")) {
    const auto type = text.get<std::string>("model_type", "");
    if (type != "gemma4" && type != "gemma4_text")
      throw Error(text.path("model_type") + " is '" + type + "', not Gemma 4");
  }
}

ConfigObject child(const ConfigObject& fields, const char* key, const json& empty) {
  return ConfigObject(fields.has(key) ? fields.at(key) : empty, fields.path(key));
}

// RoPE of one attention kind. Missing fields have the defaults of transformers' modeling_rope_utils.py.
void read_rope(const ConfigObject& rope, AttentionConfig& a) {
  const auto type = rope.get<std::string>("rope_type", rope.get<std::string>("type", "default"));
  a.rope_theta = rope.positive("rope_theta");
  a.rotated_pairs = a.head_dim / 2;
  if (type == "default") return;
  if (type != "proportional") throw Error(rope.path("rope_type") + " is '" + type + "', which is not implemented");
  a.rope_factor = rope.positive("factor", 1);
  const double rotary_factor = rope.positive("partial_rotary_factor", 1);
  if (rotary_factor > 1) throw Error(rope.path("partial_rotary_factor") + " is above 1");
  a.rotated_pairs =
      static_cast<int>(std::floor(rotary_factor * a.head_dim / 2));  // transformers: int(part * head_dim // 2)
}

void read_ropes(const ConfigObject& text, Config& config) {
  const json usual = {
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}},
      {"full_attention", {{"rope_type", "proportional"}, {"rope_theta", 1e6}, {"partial_rotary_factor", 0.25}}}};
  const ConfigObject ropes = child(text, "rope_parameters", usual);
  for (const AttentionKind kind : {kSliding, kFull}) {
    const char* name = kKindNames[kind];
    const bool used = std::find(config.kinds.begin(), config.kinds.end(), kind) != config.kinds.end();
    if (used && !ropes.has(name)) throw Error(ropes.path(name) + " is missing");
    read_rope(child(ropes, name, usual[name]), config.attention[kind]);
  }
}

// Newer configs give the full layers' sizes in per_layer_config {layer: {head_dim, num_key_value_heads}} alone; what a
// layer does not name is as in the sliding layers.
void read_per_layer(const ConfigObject& text, Config& config) {
  if (!text.has("per_layer_config")) return;
  const ConfigObject layers(text.at("per_layer_config"), text.path("per_layer_config"));
  std::array<bool, kAttentionKinds> seen{};
  const AttentionConfig base = config.attention[kSliding];
  for (int i = 0; i < config.layers; ++i) {
    const AttentionKind kind = config.kinds[static_cast<size_t>(i)];
    const std::string key = std::to_string(i);
    const json empty = json::object();
    const ConfigObject layer = child(layers, key.c_str(), empty);
    layer.refuse_others({"head_dim", "num_key_value_heads"});
    const int head_dim = layer.size("head_dim", base.head_dim);
    const int kv_heads = layer.size("num_key_value_heads", base.kv_heads);
    AttentionConfig& known = config.attention[kind];
    if (!seen[kind]) known.head_dim = head_dim, known.kv_heads = kv_heads;
    seen[kind] = true;
    if (head_dim != known.head_dim || kv_heads != known.kv_heads) {
      throw Error(layers.path(key.c_str()) + " differs from other layers of its kind, which is not implemented");
    }
  }
}

void read_layer_types(const ConfigObject& text, Config& config) {
  const auto types = text.get<std::vector<std::string>>("layer_types", {});
  if (!types.empty() && types.size() != static_cast<size_t>(config.layers)) {
    throw Error(text.path("layer_types") + " has " + std::to_string(types.size()) + " entries for " +
                std::to_string(config.layers) + " layers");
  }
  for (int i = 0; i < config.layers; ++i) {
    if (types.empty()) {  // transformers' default: every sixth, and always the last
      config.kinds.push_back(i % 6 == 5 || i == config.layers - 1 ? kFull : kSliding);
      continue;
    }
    const std::string& type = types[static_cast<size_t>(i)];
    if (type != kKindNames[kSliding] && type != kKindNames[kFull]) {
      throw Error(text.path("layer_types") + " names '" + type + "', which is not implemented");
    }
    config.kinds.push_back(type == kKindNames[kFull] ? kFull : kSliding);
  }
  config.kinds.back() = kFull;  // transformers makes the last layer a full one, whatever the list says
}

void check_heads(const AttentionConfig& a, const std::string& where) {
  if (a.heads % a.kv_heads != 0) {
    throw Error(where + ": " + std::to_string(a.heads) + " query heads do not divide among " +
                std::to_string(a.kv_heads) + " key-value heads");
  }
  if (a.head_dim % 2 != 0) throw Error(where + ": head_dim " + std::to_string(a.head_dim) + " is odd");
}

void read_text(const ConfigObject& text, Config& config) {
  config.vocab = text.size("vocab_size");
  config.hidden = text.size("hidden_size");
  config.intermediate = text.size("intermediate_size");
  config.layers = text.size("num_hidden_layers");
  config.window = text.size("sliding_window");
  config.eps = static_cast<float>(text.positive("rms_norm_eps", 1e-6));
  config.softcap = text.get<float>("final_logit_softcapping", 0.0f);
  if (!(config.softcap >= 0)) throw Error(text.path("final_logit_softcapping") + " is negative");
  config.max_positions = text.size("max_position_embeddings", 262144);
  config.image_blocks = text.get<std::string>("use_bidirectional_attention", "") == "vision";
  config.embed_scale = round_to_bf16(std::sqrt(static_cast<float>(config.hidden)));
  config.pad_id = text.get<int>("pad_token_id", 0);
  if (config.pad_id < 0 || config.pad_id >= config.vocab) {
    throw Error(text.path("pad_token_id") + " is outside the vocabulary of " + std::to_string(config.vocab));
  }
  config.bos_id = text.get<int>("bos_token_id", 2);

  AttentionConfig& sliding = config.attention[kSliding];
  sliding.heads = text.size("num_attention_heads");
  sliding.kv_heads = text.size("num_key_value_heads");
  sliding.head_dim = text.size("head_dim");
  AttentionConfig& full = config.attention[kFull];
  full = sliding;
  full.k_is_v = text.get<bool>("attention_k_eq_v", false);
  full.head_dim = text.size("global_head_dim", sliding.head_dim);
  if (full.k_is_v) full.kv_heads = text.size("num_global_key_value_heads", sliding.kv_heads);
  read_layer_types(text, config);
  read_per_layer(text, config);
  read_ropes(text, config);
  check_heads(sliding, "config: sliding layers");
  check_heads(full, "config: full layers");
}

void read_vision(const ConfigObject& top, const ConfigObject& vision, Config& config) {
  vision.refuse_unless("use_clipped_linears", false, "clipping linear layers");
  vision.refuse_unless("attention_bias", false, "attention bias");
  vision.refuse_unless("hidden_activation", "gelu_pytorch_tanh", "another activation than gelu_pytorch_tanh");
  VisionConfig& v = config.vision;
  v.hidden = vision.size("hidden_size");
  v.intermediate = vision.size("intermediate_size");
  v.layers = vision.size("num_hidden_layers");
  v.heads = vision.size("num_attention_heads");
  v.head_dim = vision.size("head_dim", std::max(1, v.hidden / v.heads));
  if (vision.size("num_key_value_heads", v.heads) != v.heads) {
    throw Error(vision.path("num_key_value_heads") + " differs from num_attention_heads, which is not implemented");
  }
  if (v.head_dim % 4 != 0) throw Error(vision.path("head_dim") + " must be a multiple of 4: two axes of rotated pairs");
  v.patch = vision.size("patch_size", 16);
  v.pool = vision.size("pooling_kernel_size", 3);
  v.positions = vision.size("position_embedding_size", 10240);
  v.default_budget = vision.size("default_output_length", top.size("vision_soft_tokens_per_image", 280));
  v.eps = static_cast<float>(vision.positive("rms_norm_eps", 1e-6));
  v.standardize = vision.get<bool>("standardize", false);
  const json empty = json::object();
  const ConfigObject rope = child(vision, "rope_parameters", empty);
  // transformers' older name for "axial", which has one meaning here: half of a head turns by x, half by y.
  if (rope.get<std::string>("rope_type", "axial") != "default") {
    rope.refuse_unless("rope_type", "axial", "another rotary embedding of the vision tower");
  }
  v.rope_theta = rope.positive("rope_theta", 100);
}

}  // namespace

Config parse_config(const std::string& text_of_file) {
  const json object = parse(text_of_file, "config.json");
  const ConfigObject top(object, "config");
  if (top.get<std::string>("model_type", "") == kDrafterType) {
    throw Error(
        "config.model_type is gemma4_assistant: this is a drafter, which drafts for a model and is none itself");
  }
  const bool nested = top.has("text_config");
  const ConfigObject text(nested ? object["text_config"] : object, nested ? "config.text_config" : "config");
  refuse_other_variants(top, text);
  text.refuse_unless("num_kv_shared_layers", 0, "sharing keys and values between layers");
  Config config;
  read_text(text, config);
  config.tied = top.get<bool>("tie_word_embeddings", text.get<bool>("tie_word_embeddings", true));
  config.eos_ids = id_list(top.has("eos_token_id") ? top : text, "eos_token_id");
  config.image_id = top.get<int>("image_token_id", -1);
  config.audio_id = top.get<int>("audio_token_id", -1);
  config.video_id = top.get<int>("video_token_id", -1);
  config.boi_id = top.get<int>("boi_token_id", -1);
  config.eoi_id = top.get<int>("eoi_token_id", -1);
  config.has_vision = top.has("vision_config");
  if (config.has_vision) read_vision(top, ConfigObject(object["vision_config"], "config.vision_config"), config);
  return config;
}

DrafterConfig parse_drafter_config(const std::string& text_of_file) {
  const json object = parse(text_of_file, "config.json");
  const ConfigObject top(object, "config");
  if (top.get<std::string>("model_type", "") != kDrafterType) {
    throw Error("config.model_type is not gemma4_assistant: this is no drafter");
  }
  if (!top.has("text_config")) throw Error("config has no field 'text_config'");
  const ConfigObject text(object["text_config"], "config.text_config");
  top.refuse_unless("use_ordered_embeddings", false, "a drafter that chooses tokens by centroids");
  refuse_other_variants(top, text);
  DrafterConfig drafter;
  read_text(text, drafter.text);
  text.refuse_unless("num_kv_shared_layers", drafter.text.layers, "a drafter with keys and values of its own");
  drafter.text.tied = top.get<bool>("tie_word_embeddings", text.get<bool>("tie_word_embeddings", true));
  drafter.backbone_hidden = top.size("backbone_hidden_size");
  return drafter;
}

namespace {

void need_equal(const char* what, double drafter, double target) {
  if (drafter == target) return;
  const auto text = [](double value) { return json(value).dump(); };
  throw Error("the drafter does not fit the model: its " + std::string(what) + " is " + text(drafter) +
              ", the model's " + text(target));
}

}  // namespace

void check_drafter_fits(const DrafterConfig& drafter, const Config& target) {
  const Config& own = drafter.text;
  need_equal("backbone_hidden_size", drafter.backbone_hidden, target.hidden);
  need_equal("vocab_size", own.vocab, target.vocab);
  for (const AttentionKind kind : {kSliding, kFull}) {
    if (std::ranges::count(own.kinds, kind) == 0) continue;
    const std::string name = kKindNames[kind];
    if (std::ranges::count(target.kinds, kind) == 0) {
      throw Error("the drafter does not fit the model: it reads the keys of a " + name + " layer, which that lacks");
    }
    const AttentionConfig &a = own.attention[kind], &b = target.attention[kind];
    const auto need = [&](const std::string& what, double ours, double theirs) {
      need_equal((what + " of " + name).c_str(), ours, theirs);
    };
    need("head_dim", a.head_dim, b.head_dim);
    need("num_key_value_heads", a.kv_heads, b.kv_heads);
    need("rope_theta", a.rope_theta, b.rope_theta);
    need("number of rotated pairs", a.rotated_pairs, b.rotated_pairs);
    need("rope factor", a.rope_factor, b.rope_factor);
    if (kind == kSliding) need_equal("sliding_window", own.window, target.window);
  }
}

std::string without_vision(const std::string& text_of_file) {
  auto object = read_json<nlohmann::ordered_json>(text_of_file);
  object["vision_config"] = nullptr;
  return object.dump(2);
}

GenerationConfig parse_generation_config(const std::string& text) {
  GenerationConfig generation;
  if (text.empty()) return generation;
  const json object = parse(text, "generation_config.json");
  const ConfigObject fields(object, "generation_config");
  generation.do_sample = fields.get<bool>("do_sample", true);
  generation.temperature = fields.get<float>("temperature", 1.0f);
  generation.top_p = fields.get<float>("top_p", 1.0f);
  generation.top_k = fields.get<int>("top_k", 0);
  generation.eos_ids = id_list(fields, "eos_token_id");
  return generation;
}

void check_image_processor(const Config& config, const std::string& processor_config) {
  if (processor_config.empty()) return;
  const json object = parse(processor_config, "processor_config.json");
  const json empty = json::object();
  const ConfigObject image = child(ConfigObject(object, "processor_config"), "image_processor", empty);
  for (const char* step : {"do_resize", "do_rescale", "do_convert_rgb"}) {
    image.refuse_unless(step, true, "preparing images without it");
  }
  if (image.get<bool>("do_normalize", false)) {
    image.refuse_unless("image_mean", {0.0, 0.0, 0.0}, "shifting pixels by a mean");
    image.refuse_unless("image_std", {1.0, 1.0, 1.0}, "scaling pixels by a deviation");
  }
  image.refuse_unless("resample", 3, "another filter than bicubic");
  if (std::fabs(image.positive("rescale_factor", 1 / 255.0) * 255 - 1) > 1e-6) {
    throw Error(image.path("rescale_factor") + " is another scale than 1/255, which is not implemented");
  }
  image.refuse_unless("patch_size", config.vision.patch, "another patch size than the vision tower's");
  image.refuse_unless("pooling_kernel_size", config.vision.pool, "another pooling than the vision tower's");
}

int default_image_budget(const Config& config, const std::string& processor_config) {
  if (processor_config.empty()) return config.vision.default_budget;
  const json object = parse(processor_config, "processor_config.json");
  const ConfigObject top(object, "processor_config");
  const json empty = json::object();
  const ConfigObject image = child(top, "image_processor", empty);
  return image.size("max_soft_tokens", top.size("image_seq_length", config.vision.default_budget));
}

}  // namespace gemma4
