#include "checkpoint/gguf/gguf_export.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "base/bf16.h"
#include "base/check.h"
#include "base/json_text.h"
#include "base/mapped_file.h"
#include "base/progress.h"
#include "checkpoint/gguf/gguf_config.h"
#include "checkpoint/gguf/gguf_writer.h"
#include "checkpoint/names.h"
#include "quant/blocks.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr float kUnrotated = 1e30f;  // a frequency divided by this does not rotate

// config.json with errors in words. `where` is "text_config" or the like.
class Section {
 public:
  Section(const json& values, std::string where) : values_(values), where_(std::move(where)) {}

  bool has(const char* key) const { return values_.contains(key) && !values_[key].is_null(); }

  template <typename T>
  T get(const char* key) const {
    if (!has(key)) throw Error("config.json: " + where_ + "." + key + " is missing");
    try {
      return values_[key].get<T>();
    } catch (const json::exception&) {
      throw Error("config.json: " + where_ + "." + key + " has the wrong type");
    }
  }
  template <typename T>
  T get(const char* key, T fallback) const {
    return has(key) ? get<T>(key) : fallback;
  }

  Section section(const char* key) const {
    if (!has(key) || !values_[key].is_object()) throw Error("config.json: " + where_ + "." + key + " is missing");
    return {values_[key], where_ + "." + key};
  }

 private:
  const json& values_;
  std::string where_;
};

uint32_t file_type(Format type) {  // llama_ftype of llama.h: "mostly" this type
  switch (type) {
    case Format::kF32:
      return 0;
    case Format::kF16:
      return 1;
    case Format::kQ4_0:
      return 2;
    case Format::kQ4_1:
      return 3;
    case Format::kQ8_0:
      return 7;
    case Format::kQ5_0:
      return 8;
    case Format::kQ5_1:
      return 9;
    default:
      return 32;  // bf16
  }
}

void add_general(GgufWriter& out, const GgufExport& options, const char* type) {
  out.add_string("general.type", type);
  out.add_string("general.name", options.name);
  out.add_u32("general.quantization_version", 2);
  out.add_u32("general.file_type", file_type(options.type));
}

// The value that full layers have for the key `name` of sliding layers. transformers writes it once, as `full_name`, or
// since 5.17 for each layer that differs, in per_layer_config.
int64_t of_full_layers(const Section& c, const char* name, const char* full_name) {
  if (!c.has("per_layer_config")) return c.get<int64_t>(full_name, c.get<int64_t>(name));
  const auto types = c.get<std::vector<std::string>>("layer_types");
  const auto full = std::find(types.begin(), types.end(), "full_attention");
  const std::string layer = std::to_string(full - types.begin());
  const Section layers = c.section("per_layer_config");
  return layers.has(layer.c_str()) ? layers.section(layer.c_str()).get<int64_t>(name, c.get<int64_t>(name))
                                   : c.get<int64_t>(name);
}

void add_text_config(GgufWriter& out, const Section& c) {
  const auto u32 = [&](const char* key, int64_t value) { out.add_u32(std::string("gemma4.") + key, value); };
  const auto types = c.get<std::vector<std::string>>("layer_types");
  const int64_t head_dim = of_full_layers(c, "head_dim", "global_head_dim"), head_dim_swa = c.get<int64_t>("head_dim");
  const int64_t kv_sliding = c.get<int64_t>("num_key_value_heads");
  const bool own_kv = c.get<bool>("attention_k_eq_v", false) || c.has("per_layer_config");
  const int64_t kv_full = own_kv ? of_full_layers(c, "num_key_value_heads", "num_global_key_value_heads") : kv_sliding;
  std::vector<bool> sliding;
  std::vector<int64_t> kv;
  for (const std::string& type : types) {
    sliding.push_back(type == "sliding_attention");
    kv.push_back(sliding.back() ? kv_sliding : kv_full);
  }
  u32("block_count", static_cast<int64_t>(types.size()));
  u32("context_length", c.get<int64_t>("max_position_embeddings"));
  u32("embedding_length", c.get<int64_t>("hidden_size"));
  u32("feed_forward_length", c.get<int64_t>("intermediate_size"));
  u32("attention.head_count", c.get<int64_t>("num_attention_heads"));
  out.add_u32s("gemma4.attention.head_count_kv", kv);
  u32("attention.key_length", head_dim);
  u32("attention.value_length", head_dim);
  u32("attention.key_length_swa", head_dim_swa);
  u32("attention.value_length_swa", head_dim_swa);
  u32("attention.sliding_window", c.get<int64_t>("sliding_window"));
  out.add_bools("gemma4.attention.sliding_window_pattern", sliding);
  u32("attention.shared_kv_layers", 0);
  u32("embedding_length_per_layer_input", 0);
  u32("rope.dimension_count", head_dim);
  u32("rope.dimension_count_swa", head_dim_swa);
  const Section rope = c.section("rope_parameters");
  out.add_f32("gemma4.rope.freq_base", rope.section("full_attention").get<double>("rope_theta"));
  out.add_f32("gemma4.rope.freq_base_swa", rope.section("sliding_attention").get<double>("rope_theta"));
  out.add_f32("gemma4.attention.layer_norm_rms_epsilon", c.get<double>("rms_norm_eps"));
  if (c.has("final_logit_softcapping")) {
    out.add_f32("gemma4.final_logit_softcapping", c.get<double>("final_logit_softcapping"));
  }
}

// Divisors of the full layers' rotation frequencies: 1 for the pairs that rotate.
std::vector<float> rope_divisors(const Section& c) {
  const Section rope = c.section("rope_parameters").section("full_attention");
  const double share = rope.get<double>("partial_rotary_factor", 1.0);
  if (rope.get<double>("factor", 1.0) != 1.0) throw Error("config.json: a rope factor cannot be written to GGUF");
  const int64_t pairs = of_full_layers(c, "head_dim", "global_head_dim") / 2;
  std::vector<float> divisors(static_cast<size_t>(pairs), kUnrotated);
  const int64_t rotated = std::min(pairs, static_cast<int64_t>(share * static_cast<double>(pairs)));
  std::fill_n(divisors.begin(), rotated, 1.f);
  return divisors;
}

// Markers that llama.cpp's chat parser must see in the output, so they must not be control tokens.
bool is_visible_marker(const std::string& token) {
  static const std::set<std::string> names = {"<|channel>",       "<channel|>",       "<|tool_call>", "<tool_call|>",
                                              "<|tool_response>", "<tool_response|>", "<|\"|>"};
  return names.contains(token);
}

void add_tokenizer(GgufWriter& out, TokenizerData data, int64_t rows, const std::string& chat_template) {
  constexpr int32_t kUserDefined = 4, kUnused = 5;
  if (data.tokens.empty() || data.types.size() != data.tokens.size()) throw Error("the checkpoint has no tokenizer");
  if (static_cast<int64_t>(data.tokens.size()) > rows) {
    throw Error("the tokenizer has " + std::to_string(data.tokens.size()) + " tokens, the embedding " +
                std::to_string(rows) + " rows");
  }
  while (static_cast<int64_t>(data.tokens.size()) < rows) {
    data.tokens.push_back("[PAD" + std::to_string(data.tokens.size()) + "]");
    data.types.push_back(kUnused);
  }
  for (size_t i = 0; i < data.tokens.size(); ++i) {
    if (is_visible_marker(data.tokens[i])) data.types[i] = kUserDefined;
  }
  out.add_string("tokenizer.ggml.model", "gemma4");
  out.add_strings("tokenizer.ggml.tokens", data.tokens);
  out.add_f32s("tokenizer.ggml.scores", std::vector<float>(data.tokens.size(), -1000.f));  // merging does not use them
  out.add_i32s("tokenizer.ggml.token_type", data.types);
  out.add_strings("tokenizer.ggml.merges", data.merges);
  const std::pair<const char*, const char*> kSpecial[] = {{"bos", "<bos>"},     {"eos", "<eos>"},
                                                          {"unknown", "<unk>"}, {"padding", "<pad>"},
                                                          {"mask", "<mask>"},   {"eot", "<turn|>"}};
  for (const auto& [key, token] : kSpecial) {
    const auto it = std::find(data.tokens.begin(), data.tokens.end(), token);
    if (it != data.tokens.end()) {
      out.add_u32(std::string("tokenizer.ggml.") + key + "_token_id", it - data.tokens.begin());
    }
  }
  out.add_bool("tokenizer.ggml.add_space_prefix", false);
  out.add_bool("tokenizer.ggml.add_bos_token", true);
  if (!chat_template.empty()) out.add_string("tokenizer.chat_template", chat_template);
}

void add_sampling(GgufWriter& out, const std::string& generation_config) {
  if (generation_config.empty()) return;
  const json values = parse_strict_json(generation_config, "generation_config.json");
  const Section c(values, "generation_config");
  if (c.has("top_k")) out.add_u32("general.sampling.top_k", c.get<int64_t>("top_k"));
  if (c.has("top_p")) out.add_f32("general.sampling.top_p", c.get<double>("top_p"));
  if (c.has("temperature")) out.add_f32("general.sampling.temp", c.get<double>("temperature"));
}

// One tensor to be written: a weight of the checkpoint, or `given` where there is one, converted to `format`.
struct Job {
  std::string name, weight;
  const Matrix* given;
  Format format;
  bool patches = false;  // the patch embedding, whose columns llama.cpp has in another order
};

// Rows of `matrix` in another format; `rows` of them from `begin`.
void convert_rows(const Matrix& m, Format format, int64_t begin, int64_t rows, float* scratch, uint8_t* out) {
  const int64_t bytes = m.cols / info(format).block_cols * info(format).block_bytes;
  for (int64_t row = begin; row < begin + rows; ++row, out += bytes) {
    if (format == m.format) {
      std::memcpy(out, m.codes.row<const uint8_t>(0) + row * bytes, static_cast<size_t>(bytes));
      continue;
    }
    unpack_row(m, row, scratch);
    if (is_ggml_block(format)) {
      pack_blocks(format, scratch, m.cols, out);
    } else if (format == Format::kF32) {
      std::memcpy(out, scratch, static_cast<size_t>(bytes));
    } else {
      for (int64_t i = 0; i < m.cols; ++i) {
        const uint16_t bits = format == Format::kF16 ? float_to_f16(scratch[i]) : float_to_bf16(scratch[i]);
        std::memcpy(out + 2 * i, &bits, 2);
      }
    }
  }
}

// [patch * patch, 3] -> [3, patch * patch] in one row of F32 or F16 values.
void colours_first(uint8_t* row, int64_t cols, size_t element) {
  const std::vector<uint8_t> from(row, row + static_cast<size_t>(cols) * element);
  const size_t pixels = static_cast<size_t>(cols) / 3;
  for (size_t c = 0; c < 3; ++c) {
    for (size_t i = 0; i < pixels; ++i) {
      std::memcpy(row + (c * pixels + i) * element, &from[(3 * i + c) * element], element);
    }
  }
}

void write_tensors(GgufWriter& out, const Checkpoint& checkpoint, const std::vector<Job>& jobs, ThreadPool& pool,
                   const std::string& what) {
  constexpr int64_t kBatchValues = 4 << 20;  // values that a thread converts at a time
  Progress progress(what, out.data_bytes());
  for (const Job& job : jobs) {
    const Matrix m = job.given ? *job.given : checkpoint.load(job.weight);
    const int64_t bytes = m.cols / info(job.format).block_cols * info(job.format).block_bytes;
    const int64_t step = std::max<int64_t>(1, std::min(kBatchValues / m.cols, (m.rows + 63) / 64));
    pool.parallel_for((m.rows + step - 1) / step, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(static_cast<size_t>(m.cols));
      std::vector<uint8_t> packed(static_cast<size_t>(step * bytes));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i * step, rows = std::min(step, m.rows - first);
        convert_rows(m, job.format, first, rows, scratch.data(), packed.data());
        for (int64_t row = 0; job.patches && row < rows; ++row) {
          colours_first(packed.data() + row * bytes, m.cols, static_cast<size_t>(info(job.format).block_bytes));
        }
        out.write(job.name, static_cast<uint64_t>(first * bytes), packed.data(), static_cast<uint64_t>(rows * bytes));
      }
    });
    progress.add(static_cast<uint64_t>(m.rows * bytes), job.name);
  }
}

bool is_table(const std::string& name) { return name == "embed_tokens.weight" || name == "lm_head.weight"; }

Format text_format(const std::string& name, const Weight& weight, const GgufExport& options) {
  const Matrix& m = weight.matrix;
  if (weight.shape.size() < 2) return Format::kF32;  // norms and layer scalars
  if (options.keep_blocks && is_ggml_block(m.format)) return m.format;
  Format format = options.type;
  if (is_table(name)) {
    const bool narrow = is_ggml_block(format) && format != Format::kQ8_0;
    format = options.embedding != Format::kNone ? options.embedding : narrow ? Format::kQ8_0 : format;
  }
  return m.cols % info(format).block_cols == 0 ? format : Format::kBF16;
}

void refuse_source(const Checkpoint& checkpoint, const fs::path& output) {
  if (is_file_of(checkpoint, output)) throw Error("the output " + output.string() + " is the model to be exported");
}

const Weight& required(const Checkpoint& checkpoint, const std::string& name) {
  const Weight* weight = checkpoint.find(name);
  if (weight == nullptr) throw Error(checkpoint.path.string() + " has no " + name);
  return *weight;
}

}  // namespace

void export_gguf_text(const Checkpoint& checkpoint, const TokenizerData& tokenizer, const GgufExport& options,
                      const fs::path& output, ThreadPool& pool) {
  refuse_source(checkpoint, output);
  const json config = parse_strict_json(checkpoint.config, "config.json");
  const Section whole(config, "config");
  const Section text = whole.has("text_config") ? whole.section("text_config") : whole;
  GgufWriter out("gemma4");
  add_general(out, options, "model");
  add_text_config(out, text);
  add_sampling(out, checkpoint.generation_config);
  add_tokenizer(out, tokenizer, required(checkpoint, "embed_tokens.weight").matrix.rows, options.chat_template);
  std::vector<float> divisors = rope_divisors(text);
  Matrix rope;
  rope.format = Format::kF32;
  rope.rows = 1;
  rope.cols = static_cast<int64_t>(divisors.size());
  rope.codes = Tensor(divisors.data(), DType::kF32, {1, rope.cols});
  std::vector<Job> jobs = {{kRopeFreqs, "", &rope, Format::kF32}};
  out.add_tensor(kRopeFreqs, {rope.cols}, Format::kF32);
  for (const std::string& name : checkpoint.order) {
    if (is_vision_tensor(name)) continue;
    const Weight& weight = checkpoint.weights.at(name);
    const auto gguf_name = to_gguf_name(name);
    CHECK(gguf_name.has_value());
    jobs.push_back({*gguf_name, name, nullptr, text_format(name, weight, options)});
    out.add_tensor(*gguf_name, weight.shape, jobs.back().format);
  }
  out.begin(output, options.overwrite);
  write_tensors(out, checkpoint, jobs, pool, output.filename().string());
  check_mapped_files();
  out.commit();
}

void export_gguf_vision(const Checkpoint& checkpoint, const GgufExport& options, const fs::path& output,
                        ThreadPool& pool) {
  refuse_source(checkpoint, output);
  const json config = parse_strict_json(checkpoint.config, "config.json");
  const Section whole(config, "config");
  if (!whole.has("vision_config")) throw Error(checkpoint.path.string() + " has no vision tower to export");
  const Section v = whole.section("vision_config");
  const Section text = whole.has("text_config") ? whole.section("text_config") : whole;
  const bool half = options.type == Format::kF16;
  GgufExport described = options;
  described.type = half ? Format::kF16 : Format::kBF16;
  GgufWriter out("clip");
  add_general(out, described, "mmproj");
  const int64_t patch = v.get<int64_t>("patch_size"), pool_size = v.get<int64_t>("pooling_kernel_size");
  const auto u32 = [&](const char* key, int64_t value) { out.add_u32(std::string("clip.vision.") + key, value); };
  out.add_bool("clip.has_vision_encoder", true);
  out.add_string("clip.vision.projector_type", "gemma4v");
  u32("projection_dim", text.get<int64_t>("hidden_size"));
  u32("image_size", 224);  // llama.cpp requires it and does not use it
  u32("patch_size", patch);
  u32("embedding_length", v.get<int64_t>("hidden_size"));
  u32("feed_forward_length", v.get<int64_t>("intermediate_size"));
  u32("block_count", v.get<int64_t>("num_hidden_layers"));
  u32("attention.head_count", v.get<int64_t>("num_attention_heads"));
  u32("projector.scale_factor", pool_size);
  const int64_t budget = v.get<int64_t>("default_output_length", 280);
  u32("image_max_pixels", budget * patch * patch * pool_size * pool_size);
  out.add_f32("clip.vision.attention.layer_norm_epsilon", v.get<double>("rms_norm_eps", 1e-6));
  out.add_f32s("clip.vision.image_mean", {0, 0, 0});
  out.add_f32s("clip.vision.image_std", {1, 1, 1});
  std::vector<Job> jobs;
  for (const std::string& name : checkpoint.order) {
    if (!is_vision_tensor(name)) continue;
    const Weight& weight = checkpoint.weights.at(name);
    const std::string gguf_name = to_gguf_name(name).value();
    const bool patches = gguf_name == "v.patch_embd.weight", table = weight.shape.size() == 3;
    Format format = weight.shape.size() < 2 || table ? Format::kF32 : described.type;
    if (patches && !half) format = Format::kF32;
    std::vector<int64_t> shape = weight.shape;
    if (patches) shape = {weight.matrix.rows, 3, patch, patch};
    if (patches && weight.matrix.cols != 3 * patch * patch) throw Error("the patch embedding has the wrong width");
    jobs.push_back({gguf_name, name, nullptr, format, patches});
    out.add_tensor(gguf_name, shape, format);
  }
  out.begin(output, options.overwrite);
  write_tensors(out, checkpoint, jobs, pool, output.filename().string());
  check_mapped_files();
  out.commit();
}

}  // namespace gemma4
