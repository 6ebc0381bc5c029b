#include "engine/open.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <numeric>

#include "base/check.h"
#include "checkpoint/drafter.h"
#include "checkpoint/program_file.h"
#include "engine/drafts/draft_source.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "model/cache_plan.h"

namespace gemma4 {
namespace {

constexpr int kLargestBudget = 1120;  // soft tokens of one image, by Gemma 4's processor

std::vector<int32_t> end_ids(const Config& config, const GenerationConfig& generation, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids(generation.eos_ids.begin(), generation.eos_ids.end());
  ids.insert(ids.end(), config.eos_ids.begin(), config.eos_ids.end());
  for (const char* name : {"<turn|>", "<|tool_response>"}) {
    if (const auto id = tokenizer.find(name)) ids.push_back(*id);
  }
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

Tokenizer make_tokenizer(const TokenizerData& data, const std::filesystem::path& model) {
  if (!data.json.empty()) return Tokenizer::from_json(data.json);
  if (data.tokens.empty()) throw Error(model.string() + " holds no tokenizer.json (or an empty one)");
  return Tokenizer::from_arrays({data.tokens, data.scores, data.types, data.merges});
}

void need(bool good, const std::string& message) {
  if (!good) throw Error(message);
}

// The most tokens of a sequence: the model's positions, or what an exported program was made for.
int most_tokens(const EngineOptions& options, const Config& config, const Checkpoint& checkpoint) {
  if (!checkpoint.program) return config.max_positions;
  const auto most = static_cast<int>(
      checkpoint.program->header.constant("get_max_seq_len", std::max(kLeastDefaultSeqLen, config.max_positions)));
  need(options.max_seq_len <= most, "--max-seq-len " + std::to_string(options.max_seq_len) + " is more than the " +
                                        std::to_string(most) + " that the program " + options.model.string() +
                                        " was made for; export it with a larger --max-seq-len");
  return config.max_positions > 0 ? std::min(most, config.max_positions) : most;
}

std::string format_of_most(const Checkpoint& checkpoint, int64_t& parameters) {
  std::map<std::string, int64_t> values;
  for (const auto& [name, weight] : checkpoint.weights) {
    const int64_t count = weight.matrix.rows * weight.matrix.cols;
    values[std::string(info(weight.matrix.format).name)] += count;
    parameters += count;
  }
  const auto most = std::ranges::max_element(values, {}, [](const auto& pair) { return pair.second; });
  return most == values.end() ? "" : most->first;
}

// What a model does for the first time takes longer: memory is touched, threads start, a GPU's graphs are recorded. So
// a few rows are computed and dropped before any sequence has pages.
constexpr int kWarmUpRows = 8;
constexpr int kWarmUpSteps = 3;  // a GPU's graph of a size is recorded at its second and third run

void give_pages(Model& model, AttentionKind kind, int count) {
  std::vector<int32_t> pages(static_cast<size_t>(count));
  std::iota(pages.begin(), pages.end(), 0);
  model.set_pages(kind, 0, pages);
}

// Positions begin .. begin + rows - 1 of sequence 0; a token is drawn after the last.
void warm_up_step(Model& model, int begin, int rows) {
  Batch batch;
  for (int i = 0; i < rows; ++i) append_row(batch, model.config(), 0, 0, begin + i, -1);
  batch.logit_rows.push_back(rows - 1);
  batch.sampling.emplace_back();
  model.forward(batch);
}

void warm_up(Model& model) {
  const ModelOptions& options = model.options();
  const int full_pages = std::min(1, options.pages[kFull]);
  const int positions = std::min(full_pages * options.page, options.rows_max);
  if (positions < kWarmUpRows + kWarmUpSteps) return;  // a very small --page or --max-seq-len
  give_pages(model, kSliding, options.pages_per_seq[kSliding]);
  give_pages(model, kFull, full_pages);
  warm_up_step(model, 0, kWarmUpRows);
  for (int i = 0; i < kWarmUpSteps; ++i) warm_up_step(model, kWarmUpRows + i, 1);
  give_pages(model, kFull, 0);
}

}  // namespace

std::vector<int> device_layers(const EngineOptions& options) {
  const std::string& text = options.gpu_layers;
  if (text.empty()) return {};
  if (text == "auto") return {kAsManyAsFit};
  int layers = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layers);
  need(error == std::errc() && end == text.data() + text.size() && layers >= 0,
       "--gpu-layers is a number of layers, or auto for as many as fit, not '" + text + "'");
  return {layers};
}

static Ranks make_devices(const EngineOptions& options) {
  const std::vector<int> layers = device_layers(options);
  need(options.split == "tensor" || options.split == "layers",
       "there is no split '" + options.split + "'; tensor and layers are known");
  const bool by_layers = options.split == "layers" && options.gpus > 1;
  if (layers.empty() && !by_layers) {
    return make_ranks(options.backend, options.threads, options.gpus, options.channel);
  }
  CHECK(!options.channel);  // the command line refuses that
  std::vector<std::unique_ptr<Backend>> devices;
  if (by_layers) {
    need(layers.empty(), "--gpu-layers is for one GPU and the CPU: leave it or --gpus away");
    const int threads = std::max(1, ThreadPool::threads_for(options.threads) / options.gpus);
    for (int i = 0; i < options.gpus; ++i) {
      devices.push_back(options.backend == "cuda" ? make_cuda(i) : make_backend(options.backend, threads));
    }
    return Ranks::in_series(std::move(devices));
  }
  need(options.gpus == 1, "--gpu-layers is for one GPU and the CPU: leave it or --gpus away");
  need(options.backend == "cuda",
       "--gpu-layers puts layers on a GPU, so it needs --backend cuda, not " + options.backend);
  if (layers[0] == 0) return make_backend("cpu", options.threads);
  devices.push_back(make_cuda(0));
  devices.push_back(make_backend("cpu", options.threads));
  return Ranks::in_series(std::move(devices));
}

Ranks make_backends(const EngineOptions& options) {
  Ranks ranks = make_devices(options);
  for (int rank = 0; rank < ranks.size(); ++rank) {
    for (Backend* device : ranks.devices(rank)) device->allow_bf16(!options.precise);
  }
  return ranks;
}

ChatTemplateChoice choose_template(const Checkpoint& checkpoint, const std::string& wanted) {
  ChatTemplateChoice choice;
  choice.source = checkpoint.chat_template_source;
  TemplateMatch match;
  if (!checkpoint.chat_template.empty()) match = recognise_template(checkpoint.chat_template);
  choice.which = match.closest;
  if (!wanted.empty()) {
    const auto named = template_named(wanted);
    need(named.has_value(), "there is no chat template '" + wanted + "'; spring and july are known");
    choice.which = *named;
  } else if (!match.difference.empty()) {
    choice.warning = "the chat template in " + choice.source + " is neither of Google's (" + match.difference +
                     "); prompts are written by that of " + template_name(choice.which) +
                     " 2026; --chat-template chooses, and ends this warning";
  }
  return choice;
}

ModelOptions plan_activations(EngineOptions& options, int positions) {
  need(options.max_seqs > 0 && options.chunk > 0 && options.page > 0 && options.max_queue > 0,
       "max_seqs, chunk, page and max_queue must be at least 1");
  need(options.draft_tokens >= -1 && options.draft_tokens <= kDraftsMax,
       "--draft-tokens is from 0 to " + std::to_string(kDraftsMax));
  need(options.draft_tokens <= 0 || !options.drafter.empty() || options.propose,
       "--draft-tokens needs a drafter: give --drafter ngram or a model");
  need(options.kv_memory == 0 || options.cache_tokens == 0, "--kv-memory and --cache-tokens exclude each other");
  need(options.max_seq_len == 0 || options.max_seq_len > 1, "--max-seq-len must be at least 2");
  need(positions == 0 || options.max_seq_len <= positions, "--max-seq-len " + std::to_string(options.max_seq_len) +
                                                               " is more than the " + std::to_string(positions) +
                                                               " positions the model was made for");
  if (options.image_budget_max < 0) options.image_budget_max = std::max(1, options.image_budget);
  if (options.image_budget_max == 0) options.image_budget_max = std::max(kLargestBudget, options.image_budget);
  need(!options.vision || options.image_budget <= options.image_budget_max,
       "the default image budget is larger than the largest allowed");
  const int most = options.max_seq_len > 0 ? options.max_seq_len : positions > 0 ? positions : 1 << 30;
  options.chunk = std::min(options.chunk, most);
  options.page = std::min(options.page, most);
  need(options.cache_tokens == 0 || options.cache_tokens >= options.page,
       "--cache-tokens must be at least " + std::to_string(options.page));
  const int image = options.vision ? std::min(options.image_budget_max, most) : 0;
  if (options.cache_windows == 0) options.cache_windows = options.prefix_cache ? options.max_seqs : 0;
  ModelOptions model;
  model.rows_max = std::max(options.chunk, image) + options.max_seqs;
  model.logits_max = options.max_seqs + kScoredRowsMax;
  if (const int drafts = draft_rows_max(options); drafts > 0) {
    model.rows_max += drafts + kDrafterKeys;
    model.logits_max += drafts;
  }
  model.seqs_max = options.max_seqs;
  model.page = options.page;
  model.vision = options.vision;
  model.device_layers = device_layers(options);
  return model;
}

void plan_memory(EngineOptions& options, const Config& config, int positions, const CacheMemory& memory,
                 ModelOptions& model) {
  CacheWish wish;
  wish.max_seq_len = options.max_seq_len;
  wish.positions = positions;
  wish.tokens = options.cache_tokens;
  wish.memory = options.kv_memory;
  wish.windows = options.cache_windows;
  const CachePlan plan = plan_caches(wish, config, memory, model);
  options.max_seq_len = plan.max_seq_len;
  options.cache_tokens = plan.tokens;
  options.chunk = std::min(options.chunk, options.max_seq_len);
}

ContextEstimate estimate_context(const Checkpoint& checkpoint, const Config& config, EngineOptions options) {
  const int positions = most_tokens(options, config, checkpoint);
  options.vision = options.vision && config.has_vision;
  ModelOptions model = plan_activations(options, positions);
  const std::unique_ptr<Backend> backend = make_backend(options.backend, 1);
  const int heads[] = {config.attention[kSliding].kv_heads, config.attention[kFull].kv_heads};
  CacheMemory memory = cache_memory(*backend, config, heads, model.page, config.kinds);
  ContextEstimate estimate;
  for (const auto& [name, weight] : checkpoint.weights) {
    const int64_t values = weight.matrix.rows * weight.matrix.cols;
    estimate.weights += options.backend == "ref" ? 4 * values : static_cast<int64_t>(weight.bytes);
  }
  estimate.free = memory.free;
  memory.free = std::max<int64_t>(0, memory.free - estimate.weights);
  plan_memory(options, config, positions, memory, model);
  estimate.max_seq_len = options.max_seq_len;
  estimate.bytes_per_token = memory.page_bytes[kFull] / model.page;
  estimate.window_bytes = memory.page_bytes[kSliding] * model.pages_per_seq[kSliding];
  return estimate;
}

std::optional<Checkpoint> choose_drafter(EngineOptions& options) {
  if (options.drafter.empty() && options.draft_tokens > 0 && !options.propose) {
    const auto beside = find_drafter_beside(options.model);
    need(beside.has_value(), "--draft-tokens needs --drafter: there is no drafter beside " + options.model.string());
    options.drafter = beside->string();
  }
  if (options.drafter.empty() || options.drafter == kNgramDrafter || options.draft_tokens == 0) return std::nullopt;
  return open_drafter(options.drafter);
}

OpenedModel open_model(EngineOptions options, Ranks backends) {
  const Checkpoint checkpoint = open_checkpoint(options.model, options.mmproj, options.vision);
  const Config config = parse_config(checkpoint.config);
  const int positions = most_tokens(options, config, checkpoint);
  GenerationConfig generation = parse_generation_config(checkpoint.generation_config);
  Tokenizer tokenizer = make_tokenizer(checkpoint.tokenizer, options.model);
  ChatTemplateChoice choice = choose_template(checkpoint, options.chat_template);
  options.chat_template = template_name(choice.which);
  options.vision = options.vision && config.has_vision;
  if (options.vision) check_image_processor(config, checkpoint.processor_config);
  if (options.image_budget == 0 && config.has_vision) {
    options.image_budget = default_image_budget(config, checkpoint.processor_config);
  }
  const std::optional<Checkpoint> drafter = choose_drafter(options);
  ModelOptions model_options = plan_activations(options, positions);
  if (drafter) model_options.drafter = &*drafter;
  const EngineOptions wished = options;
  const auto plan = [&](ModelOptions& planned, const CacheMemory& memory) {
    options = wished;  // an earlier plan may have had more memory
    plan_memory(options, config, positions, memory, planned);
  };
  if (!backends) backends = make_backends(options);
  auto model = std::make_unique<Model>(checkpoint, config, backends, model_options, plan);
  need(!drafter || model->has_drafter(), options.drafter + ": this drafter cannot be used here");
  if (options.vision) {
    model->reserve_images(std::min(options.image_budget_max, options.max_seq_len) * config.vision.pool *
                          config.vision.pool);
  }
  if (options.warm_up) warm_up(*model);
  std::vector<int32_t> ends = end_ids(config, generation, tokenizer);
  int64_t parameters = 0;
  std::string format = format_of_most(checkpoint, parameters);
  return {std::move(options),    checkpoint.kind,      std::move(choice), parameters,          std::move(format),
          std::move(generation), std::move(tokenizer), std::move(ends),   std::move(backends), std::move(model)};
}

}  // namespace gemma4
