#include "checkpoint/gguf/gguf_config.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/json_text.h"

namespace gemma4 {
namespace {

using nlohmann::json;

constexpr std::string_view kModel = "gemma4", kDrafter = "gemma4-assistant";  // general.architecture

// A key of the text half: its architecture comes first.
std::string key_of(const Gguf& gguf, const std::string& name) {
  return std::string(gguf.string("general.architecture")) + "." + name;
}

// One value for each layer, from a key that holds either one number or an array with one for each layer.
std::vector<int64_t> per_layer(const Gguf& gguf, const std::string& key, int64_t layers) {
  const GgufValue* value = gguf.find(key);
  if (value == nullptr || value->type != GgufType::kArray) {
    return std::vector<int64_t>(static_cast<size_t>(layers), gguf.integer(key));
  }
  std::vector<int64_t> numbers = gguf.integers(key);
  if (static_cast<int64_t>(numbers.size()) < layers) {
    throw Error(gguf.what + ": " + key + " has " + std::to_string(numbers.size()) + " values for " +
                std::to_string(layers) + " layers");
  }
  numbers.resize(static_cast<size_t>(layers));
  return numbers;
}

// The value that all layers share.
int64_t of_all(const Gguf& gguf, const std::string& key, int64_t layers) {
  const std::vector<int64_t> values = per_layer(gguf, key, layers);
  if (std::count(values.begin(), values.end(), values[0]) != layers) {
    throw Error(gguf.what + ": " + key + " differs between layers; that is not supported");
  }
  return values[0];
}

// The value that all layers of one attention kind share; `kind` selects by is_sliding. 0 if there is no such layer.
int64_t of_kind(const Gguf& gguf, const std::string& key, const std::vector<int64_t>& values,
                const std::vector<int64_t>& is_sliding, bool kind) {
  int64_t found = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if ((is_sliding[i] != 0) != kind) continue;
    if (found != 0 && values[i] != found) {
      throw Error(gguf.what + ": " + key + " differs between layers of one kind; that is not supported");
    }
    found = values[i];
  }
  return found;
}

// The leading ones in rope_freqs are the pairs that rotate. The other pairs have huge divisors, so they do not rotate.
double rotated_share(const Gguf& gguf, int64_t head_dim) {
  const GgufTensor* tensor = gguf.tensor(kRopeFreqs);
  if (tensor == nullptr) throw Error(gguf.what + " lacks the tensor " + kRopeFreqs);
  if (tensor->format != Format::kF32 || tensor->shape != std::vector<int64_t>{head_dim / 2}) {
    throw Error(gguf.what + ": " + kRopeFreqs + " is not F32 with half a head's size");
  }
  std::vector<float> factors(static_cast<size_t>(head_dim / 2));
  std::memcpy(factors.data(), tensor->data.data(), tensor->data.size());
  const size_t rotated = static_cast<size_t>(std::count(factors.begin(), factors.end(), 1.f));
  for (size_t i = 0; i < factors.size(); ++i) {
    if (i < rotated ? factors[i] != 1 : !(factors[i] > 1e20f)) {
      throw Error(gguf.what + ": " + kRopeFreqs + " is not ones followed by huge numbers");
    }
  }
  return static_cast<double>(rotated) / static_cast<double>(factors.size());
}

// On full layers without a V projection, V is K's.
bool k_is_v(const Gguf& gguf, const std::vector<int64_t>& is_sliding) {
  int64_t with = 0, without = 0;
  for (size_t i = 0; i < is_sliding.size(); ++i) {
    if (is_sliding[i]) continue;
    ++(gguf.tensor("blk." + std::to_string(i) + ".attn_v.weight") ? with : without);
  }
  if (with && without) throw Error(gguf.what + ": some full-attention layers have attn_v and some have not");
  return without > 0;
}

// Refuses RoPE settings that would change the arithmetic and have no counterpart in config.json.
void check_rope(const Gguf& gguf, int64_t head_dim, int64_t head_dim_swa) {
  const auto key = [&](const char* name) { return key_of(gguf, name); };
  const auto scaling = gguf.string(key("rope.scaling.type"), "none");
  if (scaling != "none" && gguf.real(key("rope.scaling.factor"), 1) != 1) {
    throw Error(gguf.what + ": its positions are scaled (" + key("rope.scaling.type") + " " + printable(scaling) +
                "); that is not supported");
  }
  if (gguf.integer(key("rope.dimension_count"), head_dim) != head_dim ||
      gguf.integer(key("rope.dimension_count_swa"), head_dim_swa) != head_dim_swa) {
    throw Error(gguf.what + ": " + key("rope.dimension_count") + " is not a whole head; that is not supported");
  }
}

json rope_parameters(const Gguf& gguf, int64_t head_dim, bool has_full_layers) {
  return {
      {"sliding_attention",
       {{"rope_type", "default"}, {"rope_theta", gguf.real(key_of(gguf, "rope.freq_base_swa"), 10000.0)}}},
      {"full_attention",
       {{"rope_type", "proportional"},
        {"rope_theta", gguf.real(key_of(gguf, "rope.freq_base"))},
        {"partial_rotary_factor", has_full_layers ? rotated_share(gguf, head_dim) : 1.0}}},
  };
}

json text_config(const Gguf& gguf) {
  const auto key = [&](const char* name) { return key_of(gguf, name); };
  const auto integer = [&](const char* name) { return gguf.integer(key(name)); };
  const int64_t layers = integer("block_count");
  // Bounds the arrays that have one entry for each layer.
  if (layers < 1 || layers > 10'000) throw Error(gguf.what + ": " + key("block_count") + " is out of range");
  const auto list = [&](const char* name) { return per_layer(gguf, key(name), layers); };
  const auto sliding = list("attention.sliding_window_pattern");
  const auto kind = [&](const char* name, bool is_sliding) {
    return of_kind(gguf, name, list(name), sliding, is_sliding);
  };
  const int64_t head_dim = integer("attention.key_length"), head_dim_swa = integer("attention.key_length_swa");
  if (head_dim < 2 || head_dim > 65536)
    throw Error(gguf.what + ": " + key("attention.key_length") + " is out of range");
  if (integer("attention.value_length") != head_dim || integer("attention.value_length_swa") != head_dim_swa) {
    throw Error(gguf.what + ": keys and values have different sizes");
  }
  check_rope(gguf, head_dim, head_dim_swa);
  const int64_t kv_sliding = kind("attention.head_count_kv", true), kv_full = kind("attention.head_count_kv", false);
  json types = json::array();
  for (const int64_t s : sliding) types.push_back(s ? "sliding_attention" : "full_attention");
  const GgufTensor* embedding = gguf.tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) throw Error(gguf.what + " lacks token_embd.weight");
  const bool shared = k_is_v(gguf, sliding);
  json config = {
      {"model_type", "gemma4_text"},
      {"vocab_size", embedding->shape[0]},
      {"hidden_size", integer("embedding_length")},
      {"intermediate_size", of_all(gguf, key("feed_forward_length"), layers)},
      {"num_hidden_layers", layers},
      {"layer_types", types},
      {"num_attention_heads", of_all(gguf, key("attention.head_count"), layers)},
      {"num_key_value_heads", kv_sliding ? kv_sliding : kv_full},
      {"num_global_key_value_heads", kv_full ? kv_full : kv_sliding},
      {"head_dim", head_dim_swa},
      {"global_head_dim", head_dim},
      {"attention_k_eq_v", shared},
      {"sliding_window", integer("attention.sliding_window")},
      {"rms_norm_eps", gguf.real(key("attention.layer_norm_rms_epsilon"))},
      {"hidden_activation", "gelu_pytorch_tanh"},
      {"max_position_embeddings", integer("context_length")},
      {"attention_bias", false},
      {"use_bidirectional_attention", "vision"},  // llama.cpp assumes it; E2B and E4B are refused below
      {"hidden_size_per_layer_input", gguf.integer(key("embedding_length_per_layer_input"), 0)},
      {"num_kv_shared_layers", gguf.integer(key("attention.shared_kv_layers"), 0)},
      {"enable_moe_block", gguf.integer(key("expert_count"), 0) > 0},
      {"use_double_wide_mlp", false},
      {"tie_word_embeddings", gguf.tensor("output.weight") == nullptr},
      {"final_logit_softcapping", gguf.real(key("final_logit_softcapping"), 0)},
  };
  if (config["final_logit_softcapping"] == 0.0) config["final_logit_softcapping"] = nullptr;
  if (!shared && kv_full && kv_full != kv_sliding) {
    throw Error(gguf.what + ": full layers with attn_v and their own number of KV heads are not supported");
  }
  config["rope_parameters"] = rope_parameters(gguf, head_dim, kv_full != 0);
  return config;
}

// What an mmproj file says of itself, and a file of both halves does not need to.
void check_projector(const Gguf& gguf, int64_t hidden) {
  const auto kind = gguf.string("clip.vision.projector_type", gguf.string("clip.projector_type", ""));
  if (kind != "gemma4v") throw Error(gguf.what + ": its projector is '" + printable(kind) + "', not gemma4v");
  if (const int64_t width = gguf.integer("clip.vision.projection_dim"); width != hidden) {
    throw Error(gguf.what + " belongs to a model of another size: it makes embeddings of " + std::to_string(width) +
                ", the text model's are " + std::to_string(hidden));
  }
}

json vision_config(const Gguf& gguf, int64_t hidden) {
  const bool mmproj = !holds_vision(gguf);
  if (mmproj) check_projector(gguf, hidden);
  const std::string prefix = mmproj ? "clip.vision." : "gemma4.vision.";
  const auto integer = [&](const char* key) { return gguf.integer(prefix + key); };
  const GgufTensor* table = gguf.tensor("v.position_embd.weight");
  if (table == nullptr || table->shape.size() != 3 || table->shape[0] != 2) {
    throw Error(gguf.what + ": v.position_embd.weight is missing or not [2, positions, width]");
  }
  const int64_t width = integer("embedding_length"), heads = integer("attention.head_count");
  const int64_t patch = integer("patch_size"), pool = gguf.integer(prefix + "projector.scale_factor", 3);
  if (heads < 1 || width < 1 || width % heads != 0) throw Error(gguf.what + ": its heads do not divide its width");
  if (patch < 1 || patch > 1024 || pool < 1 || pool > 1024) throw Error(gguf.what + ": bad patch or pooling size");
  // Most files do not say how many soft tokens the model was trained for; Gemma 4's is 280.
  const int64_t pixels = gguf.integer(prefix + "image_max_pixels", 0);
  const int64_t budget = pixels > 0 ? pixels / (patch * patch * pool * pool) : 280;
  return {
      {"model_type", "gemma4_vision"},
      {"hidden_size", width},
      {"intermediate_size", integer("feed_forward_length")},
      {"num_hidden_layers", integer("block_count")},
      {"num_attention_heads", heads},
      {"num_key_value_heads", heads},
      {"head_dim", width / heads},
      {"hidden_activation", "gelu_pytorch_tanh"},
      {"rms_norm_eps", gguf.real(prefix + "attention.layer_norm_epsilon")},
      {"patch_size", patch},
      {"pooling_kernel_size", pool},
      {"position_embedding_size", table->shape[1]},
      {"default_output_length", budget},
      {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 100.0}}},  // fixed in llama.cpp too
      {"standardize", gguf.tensor("v.std_bias") != nullptr},
      {"use_clipped_linears", false},
      {"attention_bias", false},
  };
}

int64_t token_id(const Gguf& gguf, std::string_view text) {
  const auto& tokens = gguf.strings("tokenizer.ggml.tokens");
  const auto it = std::find(tokens.begin(), tokens.end(), text);
  return it == tokens.end() ? -1 : it - tokens.begin();
}

void add_token(json& config, const char* key, const Gguf& gguf, std::string_view text) {
  if (const int64_t id = token_id(gguf, text); id >= 0) config[key] = id;
}

json stop_ids(const Gguf& gguf, bool tool_response) {
  json ids = json::array({gguf.integer("tokenizer.ggml.eos_token_id", 1)});
  const auto add = [&](std::string_view text) {
    const int64_t id = token_id(gguf, text);
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  };
  add("<eos>");
  add("<turn|>");
  if (tool_response) add("<|tool_response>");
  return ids;
}

std::string drafter_config(const Gguf& text) {
  json config = {{"architectures", {"Gemma4AssistantForCausalLM"}},
                 {"model_type", "gemma4_assistant"},
                 {"dtype", "bfloat16"},
                 {"backbone_hidden_size", text.integer(key_of(text, "embedding_length_out"))},
                 {"use_ordered_embeddings", false},  // llama.cpp computes all logits whatever the source says
                 {"text_config", text_config(text)}};
  config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"];
  return config.dump(2);
}

}  // namespace

bool holds_vision(const Gguf& gguf) { return gguf.find("gemma4.vision.block_count") != nullptr; }

void refuse_other_ggufs(const Gguf& gguf) {
  if (gguf.string("general.type", "model") == "adapter") {
    throw Error(gguf.what + " is an adapter (general.type), not a model: merge it into its base first (llama.cpp: " +
                "llama-export-lora)");
  }
  const auto architecture = gguf.string("general.architecture", "");
  if (architecture != kModel) return;  // config_from_gguf() says so
  const auto has = [&](const char* key) { return gguf.integer(key, 0) > 0; };
  const char* which = has("gemma4.expert_count")                       ? "a mixture of experts, as Gemma 4 26B-A4B"
                      : has("gemma4.embedding_length_per_layer_input") ? "Gemma 4 E2B or E4B (per-layer embeddings)"
                      : has("gemma4.attention.shared_kv_layers")       ? "a model whose layers share keys and values"
                                                                       : nullptr;
  if (which) throw Error(gguf.what + " is " + which + "; this program runs the dense ones (31B)");
}

bool is_drafter_gguf(const Gguf& gguf) { return gguf.string("general.architecture", "") == kDrafter; }

bool is_vision_gguf(const Gguf& gguf) {
  return gguf.string("general.architecture", "") == "clip" || gguf.string("general.type", "") == "mmproj";
}

std::string vision_config_from_gguf(const Gguf& vision, int64_t hidden) {
  json config = {{"vision_config", vision_config(vision, hidden)}};
  config["vision_soft_tokens_per_image"] = config["vision_config"]["default_output_length"];
  return config.dump(2);
}

std::string config_from_gguf(const Gguf& text) {
  const auto architecture = text.string("general.architecture");
  if (architecture == kDrafter) return drafter_config(text);
  if (architecture != kModel) {
    throw Error(text.what + " holds a model of the architecture '" + printable(architecture) + "', not gemma4");
  }
  json config = {{"architectures", {"Gemma4ForConditionalGeneration"}},
                 {"model_type", "gemma4"},
                 {"dtype", "bfloat16"},
                 {"audio_config", nullptr},
                 {"text_config", text_config(text)}};
  json& inner = config["text_config"];
  inner["pad_token_id"] = text.integer("tokenizer.ggml.padding_token_id", 0);
  inner["bos_token_id"] = text.integer("tokenizer.ggml.bos_token_id", 2);
  inner["eos_token_id"] = text.integer("tokenizer.ggml.eos_token_id", 1);
  config["tie_word_embeddings"] = inner["tie_word_embeddings"];
  config["eos_token_id"] = stop_ids(text, false);
  add_token(config, "image_token_id", text, "<|image|>");
  add_token(config, "boi_token_id", text, "<|image>");
  add_token(config, "eoi_token_id", text, "<image|>");
  add_token(config, "audio_token_id", text, "<|audio|>");
  add_token(config, "video_token_id", text, "<|video|>");
  config["vision_config"] = nullptr;
  return config.dump(2);
}

std::string generation_config_from_gguf(const Gguf& text) {
  // The published generation_config.json of all Gemma 4 chat models, where the file does not say otherwise.
  const json config = {{"do_sample", true},
                       {"temperature", text.real("general.sampling.temp", 1.0)},
                       {"top_k", text.integer("general.sampling.top_k", 64)},
                       {"top_p", text.real("general.sampling.top_p", 0.95)},
                       {"bos_token_id", text.integer("tokenizer.ggml.bos_token_id", 2)},
                       {"pad_token_id", text.integer("tokenizer.ggml.padding_token_id", 0)},
                       {"eos_token_id", stop_ids(text, true)}};
  return config.dump(2);
}

TokenizerData tokenizer_from_gguf(const Gguf& text) {
  TokenizerData data;
  const auto model = text.string("tokenizer.ggml.model");
  // Ollama's converter says "llama" and names the rules for splitting text beside it.
  const bool ollama = model == "llama" && text.string("tokenizer.ggml.pre", "") == "gemma4";
  if (model != "gemma4" && !(ollama && text.find("tokenizer.ggml.merges"))) {
    throw Error(text.what + ": its tokenizer is of the kind '" + printable(model) + "'; gemma4 is read");
  }
  const auto& tokens = text.strings("tokenizer.ggml.tokens");
  data.tokens.assign(tokens.begin(), tokens.end());
  if (text.find("tokenizer.ggml.scores")) data.scores = text.floats("tokenizer.ggml.scores");
  for (const int64_t type : text.integers("tokenizer.ggml.token_type")) {
    data.types.push_back(static_cast<int32_t>(std::clamp<int64_t>(type, 0, INT32_MAX)));
  }
  const auto& merges = text.strings("tokenizer.ggml.merges");
  data.merges.assign(merges.begin(), merges.end());
  if (data.types.size() != data.tokens.size() || (!data.scores.empty() && data.scores.size() != data.tokens.size())) {
    throw Error(text.what + ": its tokens, types and scores are not equally many");
  }
  return data;
}

}  // namespace gemma4
