// Config: what config.json says, checked field by field against what this program computes. A field that would change
// the arithmetic in a way we do not implement is refused by name. Sources: config.json of google/gemma-4-31B-it, and
// transformers' configuration_gemma4.py.
#pragma once

#include <array>
#include <string>
#include <vector>

namespace gemma4 {

enum AttentionKind { kSliding, kFull, kAttentionKinds };  // the two kinds of attention layer

struct AttentionConfig {
  int heads = 0, kv_heads = 0, head_dim = 0;
  bool k_is_v = false;  // no v_proj: V is k_proj's output, read before K's norm
  double rope_theta = 0;
  int rotated_pairs = 0;   // of head_dim / 2; the others pass through
  double rope_factor = 1;  // frequencies are divided by it
};

struct VisionConfig {
  int hidden = 0, intermediate = 0, layers = 0, heads = 0, head_dim = 0;
  int patch = 16, pool = 3, positions = 0;
  int default_budget = 280;  // soft tokens for each image
  double rope_theta = 100;
  float eps = 1e-6f;
  bool standardize = false;
  int patch_dim() const { return 3 * patch * patch; }
};

struct Config {
  int vocab = 0, hidden = 0, intermediate = 0, layers = 0;
  std::vector<AttentionKind> kinds;  // [layers]
  std::array<AttentionConfig, kAttentionKinds> attention;
  int window = 0;             // a token sees itself and window - 1 before it on sliding layers
  bool image_blocks = false;  // use_bidirectional_attention == "vision"
  float eps = 1e-6f;
  float softcap = 0;      // 0: none
  float embed_scale = 1;  // sqrt(hidden) rounded to bfloat16
  int max_positions = 0;
  bool tied = true;
  bool has_vision = false;
  VisionConfig vision;

  int pad_id = 0, bos_id = 2, image_id = -1, boi_id = -1, eoi_id = -1;
  int audio_id = -1, video_id = -1;
  // Places for what is no text are embedded as padding; an image's are then overwritten by its rows.
  int embedded_id(int id) const { return id == image_id || id == audio_id || id == video_id ? pad_id : id; }
  std::vector<int> eos_ids;  // of config.json
};

// A drafter (`gemma4_assistant`). Its layers have no keys and values: they attend to those of the target, the model
// whose tokens it drafts. Source: transformers' configuration_gemma4_assistant.py.
struct DrafterConfig {
  Config text;              // of its own layers; the KV heads are those of the target
  int backbone_hidden = 0;  // the target's hidden size
};

// Throws Error: not JSON, a missing field, a field that contradicts another, or one we do not implement. A file without
// `vision_config` is refused; `"vision_config": null` says that the checkpoint is text-only.
Config parse_config(const std::string& json);
DrafterConfig parse_drafter_config(const std::string& json);  // throws as parse_config() does

// Throws Error that names the first size in which the drafter does not fit the target.
void check_drafter_fits(const DrafterConfig& drafter, const Config& target);

std::string without_vision(const std::string& json);  // the same config.json, of a model that reads text alone

struct GenerationConfig {
  bool do_sample = true;
  float temperature = 1, top_p = 1;
  int top_k = 0;
  std::vector<int> eos_ids;
};
GenerationConfig parse_generation_config(const std::string& json);  // empty text: the defaults above

// Throws Error: processor_config.json prepares images in another way than this program does. The text may be empty.
void check_image_processor(const Config& config, const std::string& processor_config);

// The image budget of processor_config.json, else of vision_config. `processor_config` may be empty.
int default_image_budget(const Config& config, const std::string& processor_config);

}  // namespace gemma4
