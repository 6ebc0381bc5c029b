#include "checkpoint/vision_source.h"

#include "base/check.h"
#include "base/json.h"
#include "base/json_text.h"
#include "checkpoint/gguf/gguf_checkpoint.h"
#include "checkpoint/huggingface.h"
#include "checkpoint/names.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

void erase_vision_weights(Checkpoint& checkpoint) {
  std::erase_if(checkpoint.order, [](const std::string& name) { return is_vision_tensor(name); });
  std::erase_if(checkpoint.weights, [](const auto& weight) { return is_vision_tensor(weight.first); });
}

// A text model's config may lack the tokens of pictures; its tokenizer.json knows them by their text.
void add_picture_tokens(json& config, const std::string& tokenizer) {
  constexpr std::pair<const char*, const char*> kTokens[] = {
      {"image_token_id", "<|image|>"}, {"boi_token_id", "<|image>"}, {"eoi_token_id", "<image|>"}};
  if (config.contains("image_token_id") || tokenizer.empty()) return;
  const json words = read_json_or_discard<json>(tokenizer);
  if (!words.is_object() || !words.contains("added_tokens") || !words["added_tokens"].is_array()) return;
  for (const json& token : words["added_tokens"]) {
    if (!token.is_object()) continue;
    for (const auto& [key, text] : kTokens) {
      if (token.value("content", json()) == text) config[key] = token.value("id", json(-1));
    }
  }
}

// A flat config (of Gemma4ForCausalLM) becomes the text half of a config with both.
json with_text_half(const std::string& text_of_file, const std::string& what) {
  json config = parse_strict_json(text_of_file, what);
  if (!config.is_object()) throw Error(what + " is not a JSON object");
  if (config.contains("text_config")) return config;
  json whole = {
      {"architectures", {"Gemma4ForConditionalGeneration"}}, {"model_type", "gemma4"}, {"text_config", config}};
  for (const char* key : {"tie_word_embeddings", "eos_token_id", "image_token_id", "boi_token_id", "eoi_token_id"}) {
    if (config.contains(key)) whole[key] = config[key];
  }
  return whole;
}

void take_weights(Checkpoint& checkpoint, Checkpoint& other) {
  for (const std::string& name : other.order) {
    if (!is_vision_tensor(name)) continue;
    checkpoint.weights.emplace(name, std::move(other.weights.at(name)));
    checkpoint.order.push_back(name);
  }
  checkpoint.files.insert(checkpoint.files.end(), other.files.begin(), other.files.end());
  checkpoint.owned.insert(checkpoint.owned.end(), other.owned.begin(), other.owned.end());
}

}  // namespace

void add_vision(Checkpoint& checkpoint, const fs::path& source) {
  json ours = with_text_half(checkpoint.config, checkpoint.path.string() + ": config.json");
  const json& text = ours["text_config"];
  const json hidden = text.is_object() ? text.value("hidden_size", json()) : json();
  if (!hidden.is_number_integer()) throw Error(checkpoint.path.string() + ": config.json has no hidden_size");
  std::error_code ignored;
  const bool directory = fs::is_directory(source, ignored);
  Checkpoint tower = directory ? open_safetensors_directory(source) : open_mmproj(source, hidden.get<int64_t>());
  const json theirs = parse_strict_json(tower.config, source.string() + ": config.json");
  if (!theirs.is_object() || !theirs.contains("vision_config") || !theirs["vision_config"].is_object()) {
    throw Error(source.string() + ": its config.json has no vision_config");
  }
  for (const char* key : {"vision_config", "vision_soft_tokens_per_image"}) {
    if (theirs.contains(key)) ours[key] = theirs[key];
  }
  add_picture_tokens(ours, checkpoint.tokenizer.json);
  checkpoint.config = ours.dump(2);
  if (!tower.processor_config.empty()) checkpoint.processor_config = tower.processor_config;
  erase_vision_weights(checkpoint);
  take_weights(checkpoint, tower);
}

bool describes_vision(const Checkpoint& checkpoint) {
  const json config = read_json_or_discard<json>(checkpoint.config);
  return config.is_object() && config.contains("vision_config") && config["vision_config"].is_object();
}

void set_image_budget(Checkpoint& checkpoint, int budget) {
  if (!describes_vision(checkpoint)) {
    throw Error(checkpoint.path.string() + " has no vision tower, whose pictures would take soft tokens");
  }
  json config = parse_strict_json(checkpoint.config, checkpoint.path.string() + ": config.json");
  config["vision_config"]["default_output_length"] = budget;
  config["vision_soft_tokens_per_image"] = budget;
  checkpoint.config = config.dump(2);
  if (checkpoint.processor_config.empty()) return;
  json processor = parse_strict_json(checkpoint.processor_config, checkpoint.path.string() + ": processor_config.json");
  if (!processor.is_object()) throw Error(checkpoint.path.string() + ": processor_config.json is not a JSON object");
  processor["image_seq_length"] = budget;
  json& image = processor["image_processor"];
  if (image.is_null()) image = json::object();
  if (!image.is_object()) throw Error(checkpoint.path.string() + ": its image_processor is not a JSON object");
  image["max_soft_tokens"] = budget;
  checkpoint.processor_config = processor.dump(2);
}

void drop_vision(Checkpoint& checkpoint) {
  if (checkpoint.program) return;
  const json config = read_json_or_discard<json>(checkpoint.config);
  if (config.is_object() && config.contains("vision_config")) {
    json text_alone = config;
    text_alone["vision_config"] = nullptr;
    checkpoint.config = text_alone.dump(2);
  }
  erase_vision_weights(checkpoint);
}

}  // namespace gemma4
