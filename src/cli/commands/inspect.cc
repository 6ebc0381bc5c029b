#include <cstdio>
#include <optional>

#include "base/check.h"
#include "base/json.h"
#include "checkpoint/program_file.h"
#include "cli/cli.h"
#include "cli/engine_flags.h"
#include "engine/open.h"
#include "model/tensor_table.h"

namespace gemma4 {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// The data of `inspect`, printed as text or JSON.
struct Findings {
  Checkpoint checkpoint;
  std::optional<Config> config;
  std::optional<GenerationConfig> generation;
  ChatTemplateChoice chat_template;
  std::vector<std::string> refused;  // the reasons why `gemma4 run` would refuse it
  std::string backend;
  std::optional<ContextEstimate> context;  // where nothing is refused
};

// Calls `read`; an Error becomes a reason in `refused`.
template <typename Read>
void try_to(std::vector<std::string>& refused, Read read) {
  try {
    read();
  } catch (const Error& error) {
    refused.push_back(error.what());
  }
}

Findings look(const std::string& path, const std::filesystem::path& mmproj, bool vision, const std::string& backend) {
  Findings found;
  found.backend = backend;
  found.checkpoint = open_checkpoint(path, mmproj, vision);
  const Checkpoint& checkpoint = found.checkpoint;
  if (checkpoint.config.empty()) {
    found.refused.push_back("there is no config.json beside it");
  } else {
    try_to(found.refused, [&] { found.config = parse_config(checkpoint.config); });
  }
  try_to(found.refused, [&] { found.generation = parse_generation_config(checkpoint.generation_config); });
  if (found.config) {
    try_to(found.refused, [&] { check_image_processor(*found.config, checkpoint.processor_config); });
    try_to(found.refused, [&] { default_image_budget(*found.config, checkpoint.processor_config); });
    for (const std::string& problem : check_weights(checkpoint, *found.config)) found.refused.push_back(problem);
  }
  found.chat_template = choose_template(checkpoint, "");
  if (checkpoint.tokenizer.json.empty() && checkpoint.tokenizer.tokens.empty()) {
    found.refused.push_back("there is no tokenizer (tokenizer.json)");
  }
  if (found.config && found.refused.empty()) {
    EngineOptions options;
    options.model = path;
    options.backend = backend;
    found.context = estimate_context(checkpoint, *found.config, options);
  }
  return found;
}

int count(const Config& config, AttentionKind kind) {
  return static_cast<int>(std::count(config.kinds.begin(), config.kinds.end(), kind));
}

// The shortest decimal of a float: 0.95, not 0.949999988079071.
double decimal(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.7g", static_cast<double>(value));
  return std::atof(text);
}

ordered_json attention_json(const Config& config, AttentionKind kind) {
  const AttentionConfig& a = config.attention[kind];
  return {{"layers", count(config, kind)},
          {"heads", a.heads},
          {"kv_heads", a.kv_heads},
          {"head_dim", a.head_dim},
          {"k_is_v", a.k_is_v},
          {"rope_theta", a.rope_theta},
          {"rope_factor", a.rope_factor},
          {"rotated", 2 * a.rotated_pairs}};
}

ordered_json config_json(const Config& config) {
  ordered_json out = {{"vocabulary", config.vocab},
                      {"hidden", config.hidden},
                      {"intermediate", config.intermediate},
                      {"layers", config.layers},
                      {"sliding", attention_json(config, kSliding)},
                      {"full", attention_json(config, kFull)},
                      {"window", config.window},
                      {"image_blocks", config.image_blocks},
                      {"embed_scale", decimal(config.embed_scale)},
                      {"softcap", decimal(config.softcap)},
                      {"max_positions", config.max_positions},
                      {"tied", config.tied},
                      {"end_ids", config.eos_ids}};
  if (config.has_vision) {
    const VisionConfig& v = config.vision;
    out["vision"] = {{"layers", v.layers},
                     {"hidden", v.hidden},
                     {"intermediate", v.intermediate},
                     {"heads", v.heads},
                     {"head_dim", v.head_dim},
                     {"patch", v.patch},
                     {"pool", v.pool},
                     {"positions", v.positions},
                     {"standardize", v.standardize},
                     {"budget", v.default_budget}};
  }
  return out;
}

struct Total {
  int64_t tensors = 0, values = 0;
  uint64_t bytes = 0;
};

std::map<std::string, Total> totals_of(const Checkpoint& checkpoint) {
  std::map<std::string, Total> totals;
  for (const auto& [name, weight] : checkpoint.weights) {
    for (const std::string& key : {std::string(info(weight.matrix.format).name), std::string("all")}) {
      Total& total = totals[key];
      ++total.tensors;
      total.values += weight.matrix.rows * weight.matrix.cols;
      total.bytes += weight.bytes;
    }
  }
  return totals;
}

ordered_json to_json(const Findings& found) {
  const Checkpoint& checkpoint = found.checkpoint;
  ordered_json out = {{"path", checkpoint.path.string()}, {"kind", checkpoint.kind}};
  for (const auto& file : checkpoint.files) {
    out["files"].push_back({{"path", file->path().string()}, {"bytes", file->bytes().size()}});
  }
  if (checkpoint.program) {
    const ProgramHeader& made = checkpoint.program->header;
    out["program"] = {{"backend", made.backend}, {"layout", made.layout}, {"source", made.source}};
    for (const auto& [name, value] : made.constants) out["program"]["constants"][name] = value;
  }
  if (found.config) out["config"] = config_json(*found.config);
  if (found.generation) {
    out["generation"] = {{"do_sample", found.generation->do_sample},
                         {"temperature", decimal(found.generation->temperature)},
                         {"top_k", found.generation->top_k},
                         {"top_p", decimal(found.generation->top_p)},
                         {"end_ids", found.generation->eos_ids}};
  }
  out["chat_template"] = {{"used", template_name(found.chat_template.which)}, {"file", nullptr}};
  if (!found.chat_template.source.empty()) out["chat_template"]["file"] = found.chat_template.source;
  if (!found.chat_template.warning.empty()) out["chat_template"]["warning"] = found.chat_template.warning;
  out["tensors"] = ordered_json::array();
  for (const std::string& name : checkpoint.order) {
    const Weight& weight = *checkpoint.find(name);
    ordered_json row = {{"name", name}, {"format", info(weight.matrix.format).name}};
    if (weight.matrix.group > 0) row["group"] = weight.matrix.group;
    row["shape"] = weight.shape;
    row["bytes"] = weight.bytes;
    out["tensors"].push_back(row);
  }
  for (const auto& [format, total] : totals_of(checkpoint)) {
    out["totals"][format] = {{"tensors", total.tensors}, {"values", total.values}, {"bytes", total.bytes}};
  }
  if (found.context) {
    out["memory"] = {{"backend", found.backend},
                     {"free_bytes", found.context->free},
                     {"weights_bytes", found.context->weights},
                     {"max_seq_len", found.context->max_seq_len},
                     {"cache_bytes_per_token", found.context->bytes_per_token},
                     {"window_bytes", found.context->window_bytes}};
  }
  out["refused"] = found.refused;
  return out;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void print_attention(const Config& config, AttentionKind kind, const char* name) {
  const AttentionConfig& a = config.attention[kind];
  std::printf("  %-12s%d layers, %d heads of %d, %d KV heads%s, RoPE base %g on %d elements\n", name,
              count(config, kind), a.heads, a.head_dim, a.kv_heads, a.k_is_v ? " (V is K)" : "", a.rope_theta,
              2 * a.rotated_pairs);
}

void print_config(const Config& config) {
  std::printf("config\n  %-12s%d layers, hidden %d, MLP %d, vocabulary %d, up to %d tokens\n", "text", config.layers,
              config.hidden, config.intermediate, config.vocab, config.max_positions);
  print_attention(config, kSliding, "sliding");
  print_attention(config, kFull, "full");
  std::printf("  %-12swindow %d, images attend %s, embedding x %g, softcap %g, head %s\n", "", config.window,
              config.image_blocks ? "both ways on sliding layers" : "causally", static_cast<double>(config.embed_scale),
              static_cast<double>(config.softcap), config.tied ? "tied" : "its own");
  if (!config.has_vision) return;
  const VisionConfig& v = config.vision;
  std::printf("  %-12s%d layers, hidden %d, MLP %d, %d heads of %d, patches of %d, pooled %d x %d, %d positions, ",
              "vision", v.layers, v.hidden, v.intermediate, v.heads, v.head_dim, v.patch, v.pool, v.pool, v.positions);
  std::printf("%d tokens for an image\n", v.default_budget);
}

void print_program(const ProgramHeader& made) {
  std::printf("  %-12sfor the %s backend (%s), made of %s\n  %-12s", "program", made.backend.c_str(),
              made.layout.c_str(), made.source.c_str(), "");
  for (const auto& [name, value] : made.constants) {
    std::printf("%s%s %lld", name == made.constants.front().first ? "" : ", ", name.c_str(),
                static_cast<long long>(value));
  }
  std::printf("\n");
}

void print_context(const ContextEstimate& context, const std::string& backend) {
  constexpr double kGB = 1e9;
  std::printf("memory, with backend %s on this machine as it is now\n", backend.c_str());
  std::printf("  %.3f GB free, %.3f GB of weights; a sequence takes %.3f MB and %.3f KB for each token\n",
              static_cast<double>(context.free) / kGB, static_cast<double>(context.weights) / kGB,
              static_cast<double>(context.window_bytes) / 1e6, static_cast<double>(context.bytes_per_token) / 1e3);
  std::printf("  up to %d tokens of prompt and answer (--max-seq-len of gemma4 run, unless it is given)\n",
              context.max_seq_len);
}

void print_text(const Findings& found) {
  const Checkpoint& checkpoint = found.checkpoint;
  uint64_t bytes = 0;
  for (const auto& file : checkpoint.files) bytes += file->bytes().size();
  std::printf("%s: %s, %zu file%s, %.1f MB\n", checkpoint.path.c_str(), checkpoint.kind.c_str(),
              checkpoint.files.size(), checkpoint.files.size() == 1 ? "" : "s", static_cast<double>(bytes) / 1e6);
  std::printf(found.refused.empty() ? "  it can run\n" : "  it cannot run:\n");
  for (const std::string& reason : found.refused) std::printf("    %s\n", reason.c_str());
  if (checkpoint.program) print_program(checkpoint.program->header);
  if (found.config) print_config(*found.config);
  const ChatTemplateChoice& chosen = found.chat_template;
  std::printf("chat template\n  %-12s%s\n", template_name(chosen.which),
              !chosen.warning.empty() ? chosen.warning.c_str()
              : chosen.source.empty() ? "the checkpoint has none"
                                      : chosen.source.c_str());
  std::printf("tensors\n");
  for (const std::string& name : checkpoint.order) {
    const Weight& weight = *checkpoint.find(name);
    const std::string format = std::string(info(weight.matrix.format).name) +
                               (weight.matrix.group > 0 ? " /" + std::to_string(weight.matrix.group) : "");
    std::printf("  %-64s %-10s %-18s %12llu\n", name.c_str(), format.c_str(), shape_text(weight.shape).c_str(),
                static_cast<unsigned long long>(weight.bytes));
  }
  std::printf("totals\n");
  for (const auto& [format, total] : totals_of(checkpoint)) {
    std::printf("  %-6s %5lld tensors %15lld values %12.3f MB  %5.2f bits a value\n", format.c_str(),
                static_cast<long long>(total.tensors), static_cast<long long>(total.values),
                static_cast<double>(total.bytes) / 1e6,
                8 * static_cast<double>(total.bytes) / static_cast<double>(total.values));
  }
  if (found.context) print_context(*found.context, found.backend);
}

}  // namespace

int inspect_command(int argc, char** argv) {
  CommandLine line("gemma4 inspect",
                   "Show what a checkpoint holds and whether it can run; exit code 1 where it cannot.");
  EngineOptions options;
  bool as_json = false;
  options.backend = "auto";
  add_model_argument(line, options.model, "a model directory, or one file of weights");
  add_vision_flags(line, options.mmproj, options.vision);
  line.option("--backend", options.backend, "whose memory the longest context is found for; auto: as gemma4 run")
      .one_of({"auto", "cuda", "cpu", "ref"})
      .show_default();
  line.flag("--json", as_json, "print one JSON object");
  if (const auto code = line.parse(argc, argv)) return *code;
  choose_backend(options);
  const Findings found = look(options.model, options.mmproj, options.vision, options.backend);
  if (as_json) {
    std::printf("%s\n", to_json(found).dump(2).c_str());
  } else {
    print_text(found);
  }
  return found.refused.empty() ? kExitOk : kExitFailed;
}

}  // namespace gemma4
