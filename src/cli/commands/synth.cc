// gemma4 synth: writes a checkpoint of full size with plausible random weights, to measure size and speed without the
// real weights. Its answers are meaningless.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <set>

#include "base/bf16.h"
#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/threads.h"
#include "checkpoint/drafter.h"
#include "checkpoint/names.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torchao.h"
#include "cli/cli.h"
#include "cli/command_line.h"
#include "cli/commands/synth_gguf.h"
#include "model/tensor_table.h"
#include "quant/recipe.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr float kDeviation = 0.02f;     // standard deviation of weights: initializer_range of config.json
constexpr size_t kPoolMost = 64 << 20;  // bytes of random numbers; tensors are copied from them
constexpr uint64_t kPiece = 16 << 20;   // bytes written at once
constexpr int kLayersMost = 1000;

// The entries of google/gemma-4-31B-it's config.json on which the computation depends.
ordered_json text_config_31b() {
  return {{"model_type", "gemma4_text"},
          {"attention_bias", false},
          {"attention_k_eq_v", true},
          {"bos_token_id", 2},
          {"dtype", "bfloat16"},
          {"enable_moe_block", false},
          {"eos_token_id", 1},
          {"final_logit_softcapping", 30.0},
          {"global_head_dim", 512},
          {"head_dim", 256},
          {"hidden_activation", "gelu_pytorch_tanh"},
          {"hidden_size", 5376},
          {"hidden_size_per_layer_input", 0},
          {"initializer_range", 0.02},
          {"intermediate_size", 21504},
          {"max_position_embeddings", 262144},
          {"num_attention_heads", 32},
          {"num_global_key_value_heads", 4},
          {"num_hidden_layers", 60},
          {"num_key_value_heads", 16},
          {"num_kv_shared_layers", 0},
          {"pad_token_id", 0},
          {"rms_norm_eps", 1e-06},
          {"rope_parameters",
           {{"full_attention", {{"partial_rotary_factor", 0.25}, {"rope_theta", 1e6}, {"rope_type", "proportional"}}},
            {"sliding_attention", {{"rope_theta", 1e4}, {"rope_type", "default"}}}}},
          {"sliding_window", 1024},
          {"tie_word_embeddings", true},
          {"use_bidirectional_attention", "vision"},
          {"use_double_wide_mlp", false},
          {"vocab_size", 262144}};
}

ordered_json vision_config_31b() {
  return {{"model_type", "gemma4_vision"},
          {"attention_bias", false},
          {"default_output_length", 280},
          {"dtype", "bfloat16"},
          {"head_dim", 72},
          {"hidden_activation", "gelu_pytorch_tanh"},
          {"hidden_size", 1152},
          {"intermediate_size", 4304},
          {"num_attention_heads", 16},
          {"num_hidden_layers", 27},
          {"num_key_value_heads", 16},
          {"patch_size", 16},
          {"pooling_kernel_size", 3},
          {"position_embedding_size", 10240},
          {"rms_norm_eps", 1e-06},
          {"rope_parameters", {{"rope_theta", 100.0}, {"rope_type", "default"}}},
          {"standardize", true},
          {"use_clipped_linears", false}};
}

ordered_json config_31b() {
  return {{"architectures", {"Gemma4ForConditionalGeneration"}},
          {"audio_config", nullptr},
          {"boi_token_id", 255999},
          {"dtype", "bfloat16"},
          {"eoi_token_id", 258882},
          {"eos_token_id", {1, 106}},
          {"image_token_id", 258880},
          {"model_type", "gemma4"},
          {"text_config", text_config_31b()},
          {"tie_word_embeddings", true},
          {"vision_config", vision_config_31b()},
          {"vision_soft_tokens_per_image", 280}};
}

// The drafter's sizes as published: 4 layers, hidden 1024, 32 query heads, MLP 8192. Assumed, since it attends to the
// model's keys: head sizes, KV heads, window and RoPE are those of 31B, and the layers' kinds are sliding x 3, full.
ordered_json config_31b_assistant() {
  ordered_json text = text_config_31b();
  text["hidden_size"] = 1024;
  text["intermediate_size"] = 8192;
  text["num_hidden_layers"] = text["num_kv_shared_layers"] = 4;
  text["layer_types"] = {"sliding_attention", "sliding_attention", "sliding_attention", "full_attention"};
  text["final_logit_softcapping"] = nullptr;
  text["use_bidirectional_attention"] = nullptr;
  return {{"architectures", {"Gemma4AssistantForCausalLM"}},
          {"backbone_hidden_size", 5376},
          {"dtype", "bfloat16"},
          {"model_type", "gemma4_assistant"},
          {"text_config", text},
          {"tie_word_embeddings", true},
          {"use_ordered_embeddings", false}};
}

// 0 where a text_config has none that makes sense.
int layer_count(const ordered_json& text) {
  const auto found = text.find("num_hidden_layers");
  if (found == text.end() || !found->is_number_integer()) return 0;
  const auto count = found->get<int64_t>();
  return count > 0 && count <= kLayersMost ? static_cast<int>(count) : 0;
}

// `like`: "31b", "31b-assistant", or a directory or file with a config.json. `layers` > 0: that many text layers, in
// the same pattern.
ordered_json make_config(const std::string& like, int layers) {
  ordered_json config;
  if (like == "31b") {
    config = config_31b();
  } else if (like == "31b-assistant") {
    config = config_31b_assistant();
  } else {
    const fs::path path = fs::is_directory(like) ? fs::path(like) / "config.json" : fs::path(like);
    config = read_json_or_discard<ordered_json>(read_file(path));
    const bool known = config.is_object() && config.contains("text_config") && config["text_config"].is_object() &&
                       layer_count(config["text_config"]) > 0;
    if (!known) throw Error(path.string() + " is not a config.json of a Gemma 4 model");
  }
  ordered_json& text = config["text_config"];
  const int count = layers > 0 ? layers : layer_count(text);
  ordered_json types = ordered_json::array();
  for (int i = 0; i < count; ++i) {
    if (text.contains("layer_types") && text["layer_types"].is_array() && !text["layer_types"].empty()) {
      types.push_back(text["layer_types"][static_cast<size_t>(i) % text["layer_types"].size()]);
    } else {
      types.push_back(i % 6 == 5 ? "full_attention" : "sliding_attention");
    }
  }
  types.back() = "full_attention";  // transformers makes the last layer full whatever the list says
  text["num_hidden_layers"] = count;
  if (is_drafter_config(config.dump())) text["num_kv_shared_layers"] = count;
  text["layer_types"] = types;
  return config;
}

struct SynthModel {
  bool drafter;
  Config config;  // of the drafter's own layers, where it is one
  std::vector<TensorNeed> needs;
};

SynthModel synth_model(const std::string& config_text) {
  if (is_drafter_config(config_text)) {
    const DrafterConfig drafter = parse_drafter_config(config_text);
    return {true, drafter.text, needed_tensors(drafter)};
  }
  const Config config = parse_config(config_text);
  return {false, config, needed_tensors(config, config.has_vision)};
}

// The contents of a stored tensor.
enum class Content { kWeights, kOnes, kInt4Codes, kInt8Codes, kScale4, kZero4, kScale8, kZero8, kScaleF32 };

struct Stored {
  SafetensorsEntry entry;
  Content content;
  float deviation;  // standard deviation of the weights
};

// Random numbers for each type of content, made once. Tensors are copied from them, beginning at random offsets.
class Pools {
 public:
  Pools(size_t size, ThreadPool& threads) : normal_(size / 2), ones_(size / 8), nibbles_(size), codes_(size) {
    const int64_t blocks = 64;
    threads.parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) fill(b, blocks);
    });
  }

  // At most `size` bytes from `offset` on, modulo the size of the pool and aligned to 64; fewer at the end of the pool.
  std::pair<const void*, uint64_t> piece(Content content, uint64_t offset, uint64_t size) const {
    const auto from = [&](const auto& pool) {
      const uint64_t bytes = pool.size() * sizeof(pool[0]), at = offset % bytes / 64 * 64;
      return std::pair<const void*, uint64_t>(reinterpret_cast<const char*>(pool.data()) + at,
                                              std::min(size, bytes - at));
    };
    switch (content) {
      case Content::kInt4Codes:
        return from(nibbles_);
      case Content::kInt8Codes:
        return from(codes_);
      case Content::kOnes:
        return from(ones_);
      default:
        return from(normal_);
    }
  }

 private:
  void fill(int64_t block, int64_t blocks) {
    std::minstd_rand random(static_cast<unsigned>(block + 1));
    const auto draw = [&] {  // the sum of four uniform numbers is close enough to a normal one
      float sum = 0;
      for (int i = 0; i < 4; ++i) sum += static_cast<float>(random()) * 0x1p-31f - 0.5f;
      return sum * 1.732f;
    };
    const auto part = [&](size_t size) {
      return std::pair(size * static_cast<size_t>(block) / static_cast<size_t>(blocks),
                       size * static_cast<size_t>(block + 1) / static_cast<size_t>(blocks));
    };
    const auto code = [&](float scale, int low, int high) {
      return std::min(std::max(static_cast<int>(std::lrint(draw() * scale)), low), high);
    };
    for (auto [i, end] = part(normal_.size()); i < end; ++i) normal_[i] = float_to_bf16(draw() * kDeviation);
    for (auto [i, end] = part(ones_.size()); i < end; ++i) ones_[i] = float_to_bf16(1.0f + draw() * 0.1f);
    for (auto [i, end] = part(nibbles_.size()); i < end; ++i) {
      nibbles_[i] = static_cast<uint8_t>((code(3.4f, -8, 7) + 8) | (code(3.4f, -8, 7) + 8) << 4);
    }
    for (auto [i, end] = part(codes_.size()); i < end; ++i) codes_[i] = static_cast<int8_t>(code(40, -127, 127));
  }

  std::vector<uint16_t> normal_, ones_;
  std::vector<uint8_t> nibbles_;
  std::vector<int8_t> codes_;
};

// Contents that do not come from a pool: scales and zero points, close to those of min-max for these weights.
void fill_small(const Stored& stored, uint64_t offset, std::vector<std::byte>& out) {
  std::minstd_rand random(static_cast<unsigned>(offset + stored.entry.name.size() * 7919 + 1));
  const auto around = [&](float middle, float spread) {
    return middle * (1 + spread * (static_cast<float>(random()) * 0x1p-30f - 1));
  };
  const float deviation = stored.deviation;
  if (stored.content == Content::kZero8) return std::fill(out.begin(), out.end(), std::byte(0));
  if (stored.content == Content::kScaleF32) {
    auto* to = reinterpret_cast<float*>(out.data());
    for (size_t i = 0; i < out.size() / 4; ++i) to[i] = around(deviation / 40, 0.3f);
    return;
  }
  auto* to = reinterpret_cast<uint16_t*>(out.data());
  for (size_t i = 0; i < out.size() / 2; ++i) {
    if (stored.content == Content::kScale4) {
      to[i] = float_to_bf16(around(deviation / 3.4f, 0.3f));
    } else if (stored.content == Content::kZero4) {
      to[i] = float_to_bf16(7 + static_cast<float>(random() % 3));
    } else {
      to[i] = float_to_bf16(around(deviation / 40, 0.3f));
    }
  }
}

bool from_pool(Content content) {
  return content == Content::kWeights || content == Content::kOnes || content == Content::kInt4Codes ||
         content == Content::kInt8Codes;
}

uint64_t bytes_of(const SafetensorsEntry& entry) {
  uint64_t bytes = dtype_size(entry.dtype);
  for (int64_t dim : entry.shape) bytes *= static_cast<uint64_t>(dim);
  return bytes;
}

Content plain_content(const std::string& name) {
  return name.find("norm") != std::string::npos || name.find("scalar") != std::string::npos ||
                 name.find("std_scale") != std::string::npos
             ? Content::kOnes
             : Content::kWeights;
}

// The tensors of a bf16 checkpoint, by Hugging Face's names.
void plan_bf16(const SynthModel& model, std::vector<Stored>& out) {
  for (const TensorNeed& need : model.needs) {
    if (need.optional) continue;
    const std::string name = model.drafter ? to_huggingface_drafter_name(need.name) : to_huggingface_name(need.name);
    out.push_back({{name, DType::kBF16, need.shape}, plain_content(need.name), kDeviation});
  }
}

// The tensors of a quantised checkpoint, as `gemma4 quantize` lays them out for this recipe.
void plan_torchao(const std::vector<TensorNeed>& needs, const Recipe& recipe, std::vector<Stored>& out,
                  std::map<std::string, std::string>& metadata) {
  std::vector<std::string> logical;
  const auto add = [&](const std::string& name, DType type, std::vector<int64_t> shape, Content content) {
    out.push_back({{name, type, std::move(shape)}, content, kDeviation});
  };
  for (const TensorNeed& need : needs) {
    const auto config = need.shape.size() == 2 ? recipe.find(need.name) : std::nullopt;
    if (need.name == kPositionTable) {
      add(kPositionCodes, DType::kI8, need.shape, Content::kInt8Codes);
      add(kPositionScale, DType::kF32, {need.shape[0], need.shape[1], 1}, Content::kScaleF32);
      metadata[kPositionCodes] = metadata[kPositionScale] = torchao_plain_metadata();
      logical.push_back(kPositionCodes);
      logical.push_back(kPositionScale);
      continue;
    }
    logical.push_back(need.name);
    if (!config || is_buffer(need.name)) {
      add(need.name, DType::kBF16, need.shape, plain_content(need.name));
      metadata[need.name] = torchao_plain_metadata();
      continue;
    }
    const int64_t rows = need.shape[0], cols = need.shape[1], group = config->group == 0 ? cols : config->group;
    check_quantizable(*config, cols, need.name);
    const std::string codes = torchao_tensor(need.name, "qdata"), scale = torchao_tensor(need.name, "scale"),
                      zero = torchao_tensor(need.name, "zero_point");
    if (config->bits == 4) {
      add(codes, DType::kU8, {rows, cols / 2}, Content::kInt4Codes);
      add(scale, DType::kBF16, {cols / group, rows}, Content::kScale4);
      add(zero, DType::kBF16, {cols / group, rows}, Content::kZero4);
      metadata[need.name] = torchao_int4_metadata(rows, cols, group);
    } else {
      add(codes, DType::kI8, {rows, cols}, Content::kInt8Codes);
      add(scale, DType::kBF16, {rows, cols / group}, Content::kScale8);
      add(zero, DType::kI8, {rows, cols / group}, Content::kZero8);
      metadata[need.name] = torchao_int8_metadata(group);
    }
  }
  metadata[kTensorNames] = torchao_names_metadata(logical);
}

RecipeModel recipe_model(const Config& config) {
  RecipeModel model{config.layers, {}};
  for (int i = 0; i < config.layers; ++i) {
    if (config.kinds[static_cast<size_t>(i)] == kFull) model.full.insert(i);
  }
  return model;
}

uint64_t write_all(const fs::path& path, const std::vector<Stored>& plan,
                   const std::map<std::string, std::string>& metadata, Overwrite overwrite, ThreadPool& threads) {
  struct Piece {
    const Stored* stored;
    uint64_t offset, size;
  };
  std::vector<SafetensorsEntry> entries;
  std::vector<Piece> pieces;
  for (const Stored& stored : plan) {
    entries.push_back(stored.entry);
    const uint64_t bytes = bytes_of(stored.entry);
    for (uint64_t at = 0; at < bytes; at += kPiece) pieces.push_back({&stored, at, std::min(kPiece, bytes - at)});
  }
  SafetensorsWriter writer(path, entries, metadata, overwrite);
  const Pools pools(std::min<uint64_t>(kPoolMost, std::max<uint64_t>(writer.data_bytes(), 1 << 16)), threads);
  std::mt19937_64 random(1);
  std::vector<uint64_t> offsets(pieces.size());
  for (uint64_t& offset : offsets) offset = random();
  threads.parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    std::vector<std::byte> small;
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      if (!from_pool(piece.stored->content)) {
        small.resize(piece.size);
        fill_small(*piece.stored, piece.offset, small);
        writer.write(piece.stored->entry.name, piece.offset, small.data(), piece.size);
        continue;
      }
      for (uint64_t done = 0; done < piece.size;) {
        const auto [data, size] =
            pools.piece(piece.stored->content, offsets[static_cast<size_t>(i)] + done, piece.size - done);
        writer.write(piece.stored->entry.name, piece.offset + done, data, size);
        done += size;
      }
    }
  });
  writer.commit();
  return writer.data_bytes();
}

struct SynthFlags {
  std::string like = "31b", output, format = "default", tokenizer;
  int layers = 0, threads = 0;
  bool config_only = false, force = false;
};

void add_flags(CommandLine& line, SynthFlags& flags) {
  line.option("--like", flags.like, "31b, 31b-assistant (its drafter), or a directory with the config.json to follow")
      .file()
      .suggest({"31b", "31b-assistant"})
      .show_default();
  line.option("-o,--output", flags.output, "directory to write; new or empty, unless --force").file().required();
  std::vector<std::string> formats = {"bf16", "q4_0"};
  formats.insert(formats.end(), builtin_recipe_names().begin(), builtin_recipe_names().end());
  line.option("--format", flags.format, "bf16, q4_0 (GGUF, text only), or a quantisation recipe")
      .file()
      .suggest(formats)
      .show_default();
  line.option("--layers", flags.layers, "text layers (0: as many as the model has)").between(0, kLayersMost);
  line.option("--tokenizer", flags.tokenizer,
              "tokenizer.json to put beside it; without one it can be measured, not run")
      .file();
  line.flag("--config-only", flags.config_only, "write no weights");
  line.option("--threads", flags.threads, "threads (0: all cores)").between(0, 1024);
  line.flag("--force", flags.force, kForceHelp);
}

// What is written beside config.json.
struct SynthFiles {
  std::string config, tokenizer;
  std::vector<Stored> plan;
  std::map<std::string, std::string> metadata;
};

// Reads and checks all that the flags name, before anything is written.
SynthFiles plan_files(const SynthFlags& flags, const SynthModel& model, const std::string& config) {
  SynthFiles files{config, "", {}, {}};
  if (flags.format == "bf16") {
    plan_bf16(model, files.plan);
  } else if (flags.format != "q4_0") {
    plan_torchao(model.needs, load_recipe(flags.format, recipe_model(model.config)), files.plan, files.metadata);
  } else if (model.drafter) {
    throw Error("--format q4_0 writes a model; a drafter is bf16 or has a quantisation recipe");
  } else if (flags.config_only || !flags.tokenizer.empty()) {
    const std::string flag = flags.config_only ? "--config-only" : "--tokenizer";
    throw Error(flag + " is for a directory with a config.json; --format q4_0 writes one .gguf file");
  }
  if (flags.tokenizer.empty()) return files;
  files.tokenizer = read_file(flags.tokenizer);
  try {
    Tokenizer::from_json(files.tokenizer);
  } catch (const Error& error) {
    throw Error(flags.tokenizer + ": " + error.what());
  }
  return files;
}

constexpr const char* kGenerationConfig =
    R"({"do_sample": true, "temperature": 1.0, "top_k": 64, "top_p": 0.95, "eos_token_id": [1, 106, 50]})";

// Returns the bytes of weights.
uint64_t write_files(const SynthFlags& flags, const SynthModel& model, const SynthFiles& files) {
  const Overwrite overwrite = overwrite_if(flags.force);
  const fs::path output = flags.output;
  const OutputDirectory directory(output, overwrite);
  ThreadPool threads(flags.threads);
  if (flags.format == "q4_0") {
    return synth_gguf(files.config, model.config, kGenerationConfig, output / "model.gguf", overwrite, threads);
  }
  write_file(output / "config.json", files.config, overwrite);
  write_file(output / "generation_config.json", kGenerationConfig, overwrite);
  if (!files.tokenizer.empty()) write_file(output / "tokenizer.json", files.tokenizer, overwrite);
  if (flags.config_only) return 0;
  return write_all(output / "model.safetensors", files.plan, files.metadata, overwrite, threads);
}

}  // namespace

int synth_command(int argc, char** argv) {
  CommandLine line("gemma4 synth", "Write a checkpoint with plausible random weights, to measure size and speed.");
  SynthFlags flags;
  add_flags(line, flags);
  if (const auto code = line.parse(argc, argv)) return *code;
  const auto start = std::chrono::steady_clock::now();
  const std::string config = make_config(flags.like, flags.layers).dump(2);
  const SynthModel model = synth_model(config);
  const auto bytes = static_cast<double>(write_files(flags, model, plan_files(flags, model, config)));
  if (flags.config_only) return kExitOk;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::fprintf(stderr, "wrote %.2f GB of random weights to %s in %.1f s (%.2f GB/s)\n", bytes / 1e9,
               flags.output.c_str(), seconds, bytes / 1e9 / seconds);
  return kExitOk;
}

}  // namespace gemma4
