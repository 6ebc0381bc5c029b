#include "engine/open.h"

#include <algorithm>

#include "base/check.h"
#include "checkpoint/program_file.h"

namespace gemma4 {
namespace {

constexpr int kLargestBudget = 1120;  // soft tokens of one image, by Gemma 4's processor
constexpr int kDefaultSeqLen = 4096;

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

int pages_for(int64_t tokens, int page) { return static_cast<int>((tokens + page - 1) / page); }

// Sliding pages that one sequence needs while a chunk of `rows` is computed: the window before the chunk's first token
// and the chunk itself, at any alignment to page boundaries.
int live_pages(const Config& config, int rows, int page) { return pages_for(config.window + rows - 2, page) + 1; }

void need(bool good, const std::string& message) {
  if (!good) throw Error(message);
}

// An exported program has a fixed maximum length.
void keep_to_program(EngineOptions& options, const ProgramFile& program) {
  const auto most = static_cast<int>(program.header.constant("get_max_seq_len", kDefaultSeqLen));
  if (options.max_seq_len == 0) options.max_seq_len = most;
  need(options.max_seq_len <= most, "max-seq-len " + std::to_string(options.max_seq_len) + " is more than the " +
                                        std::to_string(most) + " that the program " + options.model.string() +
                                        " was made for; export it with a larger --max-seq-len");
}

}  // namespace

ModelOptions plan_memory(EngineOptions& options, const Config& config) {
  need(options.max_seqs > 0 && options.chunk > 0 && options.page > 0 && options.max_queue > 0,
       "max_seqs, chunk, page and max_queue must be at least 1");
  if (options.max_seq_len == 0) {
    options.max_seq_len = config.max_positions > 0 ? std::min(kDefaultSeqLen, config.max_positions) : kDefaultSeqLen;
  }
  need(options.max_seq_len > 1, "max-seq-len must be at least 2");
  need(config.max_positions == 0 || options.max_seq_len <= config.max_positions,
       "max-seq-len " + std::to_string(options.max_seq_len) + " is more than the " +
           std::to_string(config.max_positions) + " positions the model was made for");
  if (options.image_budget_max < 0) options.image_budget_max = std::max(1, options.image_budget);
  if (options.image_budget_max == 0) options.image_budget_max = std::max(kLargestBudget, options.image_budget);
  need(!options.vision || options.image_budget <= options.image_budget_max,
       "the default image budget is larger than the largest allowed");
  options.chunk = std::min(options.chunk, options.max_seq_len);
  options.page = std::min(options.page, options.max_seq_len);
  const int image = options.vision ? std::min(options.image_budget_max, options.max_seq_len) : 0;
  ModelOptions model;
  model.rows_max = std::max(options.chunk, image) + options.max_seqs;
  model.logits_max = options.max_seqs;
  model.seqs_max = options.max_seqs;
  model.page = options.page;
  model.vision = options.vision;
  model.pages_per_seq[kFull] = pages_for(options.max_seq_len, options.page);
  model.pages_per_seq[kSliding] =
      std::min(live_pages(config, model.rows_max, options.page), model.pages_per_seq[kFull]);
  // One sequence of full length must always fit, together with a page to copy from and a spare one.
  if (options.cache_tokens == 0) options.cache_tokens = int64_t{options.max_seqs} * options.max_seq_len;
  model.pages[kFull] = std::max(pages_for(options.cache_tokens, options.page), model.pages_per_seq[kFull]) + 2;
  if (options.cache_windows == 0) options.cache_windows = options.prefix_cache ? options.max_seqs : 0;
  // Sequences rarely prefill at the same time: each gets its window and a page, and one gets a whole chunk more.
  const int window = live_pages(config, 1, options.page);
  model.pages[kSliding] =
      model.pages_per_seq[kSliding] + 2 + (options.max_seqs - 1 + options.cache_windows) * (window + 1);
  model.pages[kSliding] =
      std::min(model.pages[kSliding], std::max(model.pages[kFull], model.pages_per_seq[kSliding] + 2));
  return model;
}

OpenedModel open_model(EngineOptions options, Ranks backends) {
  const Checkpoint checkpoint = open_checkpoint(options.model, options.mmproj);
  const Config config = parse_config(checkpoint.config);
  // A Hugging Face checkpoint contains the vision tower; a GGUF file may have it in a second file.
  need(config.has_vision || checkpoint.kind == "gguf" || checkpoint.program,
       options.model.string() + ": config.json has no vision_config");
  if (checkpoint.program) keep_to_program(options, *checkpoint.program);
  GenerationConfig generation = parse_generation_config(checkpoint.generation_config);
  Tokenizer tokenizer = make_tokenizer(checkpoint.tokenizer, options.model);
  options.vision = options.vision && config.has_vision;
  if (options.vision) check_image_processor(config, checkpoint.processor_config);
  if (options.image_budget == 0 && config.has_vision) {
    options.image_budget = default_image_budget(config, checkpoint.processor_config);
  }
  const ModelOptions model_options = plan_memory(options, config);
  if (!backends) backends = make_ranks(options.backend, options.threads, options.gpus, options.channel);
  auto model = std::make_unique<Model>(checkpoint, config, backends, model_options);
  std::vector<int32_t> ends = end_ids(config, generation, tokenizer);
  return {std::move(options), checkpoint.kind,     std::move(generation), std::move(tokenizer),
          std::move(ends),    std::move(backends), std::move(model)};
}

}  // namespace gemma4
