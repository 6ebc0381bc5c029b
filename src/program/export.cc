#include "program/export.h"

#include <algorithm>

#include "base/check.h"
#include "base/json.h"
#include "base/progress.h"
#include "checkpoint/program_file.h"
#include "model/cache_plan.h"
#include "model/config.h"
#include "model/tensor_table.h"
#include "model/weights.h"
#include "program/methods.h"
#include "quant/recipe.h"

namespace gemma4 {
namespace {

ProgramLimits limits_for(const Config& config, const Checkpoint& checkpoint, int max_seq_len) {
  ProgramLimits limits;
  const int most = config.max_positions > 0 ? config.max_positions : 1 << 30;
  limits.max_seq_len = max_seq_len;
  if (limits.max_seq_len < 3 || limits.max_seq_len > most) {
    throw Error("--max-seq-len " + std::to_string(limits.max_seq_len) + " is not 3 to " + std::to_string(most) +
                ", the positions the model was made for");
  }
  if (config.has_vision) limits.soft_max = default_image_budget(config, checkpoint.processor_config);
  // Two windows, as in ExecuTorch; a chunk must also hold a whole picture.
  limits.chunk = std::min(limits.max_seq_len - 1, std::max(2 * config.window, limits.soft_max));
  return limits;
}

// As `run` finds it, with weights of so many bytes.
int longest_context(const Config& config, const Checkpoint& checkpoint, Backend& backend, int64_t weights) {
  ModelOptions model;
  model.rows_max = limits_for(config, checkpoint, config.max_positions > 0 ? config.max_positions : 1 << 30).chunk;
  const int heads[] = {config.attention[kSliding].kv_heads, config.attention[kFull].kv_heads};
  CacheMemory memory = cache_memory(backend, config, heads, model.page, config.kinds);
  memory.free = std::max<int64_t>(0, memory.free - weights);
  CacheWish wish;
  wish.positions = config.max_positions;
  wish.spare_pages = 0;
  wish.one_flat = true;
  return plan_caches(wish, config, memory, model).max_seq_len;
}

std::string absolute_text(const std::filesystem::path& path) {
  return path.empty() ? std::string() : std::filesystem::absolute(path).lexically_normal().string();
}

}  // namespace

void export_program(const Checkpoint& checkpoint, const ProgramExport& options, const std::filesystem::path& output) {
  // The weights are checked against the whole config. Only the exported config leaves out the vision tower.
  const Config whole = parse_config(checkpoint.config);
  const std::vector<std::string> problems = check_weights(checkpoint, whole);
  if (!problems.empty()) throw Error(checkpoint.path.string() + ": " + problems[0]);
  const bool vision = options.vision && whole.has_vision;
  const std::string config_text = whole.has_vision && !vision ? without_vision(checkpoint.config) : checkpoint.config;
  const Config config = parse_config(config_text);
  if (options.max_seq_len > 0) limits_for(config, checkpoint, options.max_seq_len);  // refused before work is done
  if (checkpoint.tokenizer.json.empty() && checkpoint.tokenizer.tokens.empty()) {
    throw Error(checkpoint.path.string() + " has no tokenizer.json, which a program needs");
  }
  const std::unique_ptr<Backend> backend = make_backend(options.backend, options.threads);
  ProgramWriter writer(output, options.overwrite);
  uint64_t total = 0;
  for (const TensorNeed& need : needed_tensors(config, vision)) {
    if (const Weight* weight = checkpoint.find(need.name)) total += weight->bytes;
  }
  Progress progress("program.weights", total);
  const auto tensor_of = [&](const std::string& name) {
    const Weight& weight = checkpoint.weights.at(name);
    progress.add(weight.bytes, name);
    return ProgramWriter::Tensor{name, weight.shape};
  };
  WeightSink sink;
  int64_t weights = 0;
  sink.matrix = [&](std::span<const std::string> names, const PrepackedWeight& stored) {
    weights += static_cast<int64_t>(stored.bytes.size());
    std::vector<ProgramWriter::Tensor> stacked;
    for (const std::string& name : names) stacked.push_back(tensor_of(name));
    writer.add(stacked, stored);
  };
  sink.vector = [&](const std::string& name, const std::vector<float>& values) { writer.add(tensor_of(name), values); };
  store_weights(checkpoint, whole, *backend, vision, sink);
  const int longest =
      options.max_seq_len > 0 ? options.max_seq_len : longest_context(config, checkpoint, *backend, weights);
  const ProgramLimits limits = limits_for(config, checkpoint, longest);
  ProgramHeader header;
  header.backend = backend->name();
  header.layout = backend->layout();
  header.source = absolute_text(options.source);
  header.vision = absolute_text(options.source_vision);
  const auto& builtin = builtin_recipe_names();
  const bool named = options.recipe.empty() || std::ranges::find(builtin, options.recipe) != builtin.end();
  header.recipe = named ? options.recipe : absolute_text(options.recipe);
  header.hqq = options.hqq;
  header.image_budget = options.image_budget;
  header.constants = constants_of(config, limits);
  header.methods = methods_json(methods_of(config, limits));
  writer.commit(header, config_text, checkpoint);
}

}  // namespace gemma4
