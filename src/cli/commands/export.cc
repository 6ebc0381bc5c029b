// gemma4 export: writes a checkpoint in another engine's format, or as an exported program.
#include "cli/commands/export.h"

#include <algorithm>
#include <cctype>
#include <cstdio>

#include "base/check.h"
#include "base/file.h"
#include "checkpoint/gguf/gguf_export.h"
#include "checkpoint/mlx.h"
#include "checkpoint/names.h"
#include "checkpoint/vision_source.h"
#include "cli/cli.h"
#include "cli/engine_flags.h"
#include "model/tensor_table.h"
#include "program/export.h"
#include "quant/blocks.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kExportAbout =
    "Writes a checkpoint in another program's format, or as a program that starts without laying out weights.\n\n"
    "gguf: a file for llama.cpp. Its matrices become --type; ggml blocks of a .gguf source stay as they are unless "
    "--type is given.\n"
    "With --mmproj the vision half is written beside it as mmproj-NAME; --no-vision, in any format, leaves it out.\n"
    "mlx: a directory for mlx-lm and mlx-vlm, its text matrices quantised to --bits in groups of --group columns.\n"
    "program: a directory for gemma4 itself, its weights as the kernels of --backend read them: run, serve and\n"
    "applications (program.h) map it. The checkpoint may be of any kind; its weights keep their formats.\n"
    "With --quant-recipe, gguf and program get the weights that gemma4 quantize makes of a Hugging Face directory,\n"
    "without a directory in between.\n"
    "A file that exists and a directory that is not empty are refused, unless --force says to replace what is "
    "written.\n"
    "Exit codes: 0 written, 2 bad input, 3 the checkpoint changed or could no longer be read meanwhile.";

// That a matrix of a GGUF file can be written in.
std::vector<Format> gguf_types() {
  std::vector<Format> types;
  for (int i = 1; i < static_cast<int>(std::size(kFormats)); ++i) {
    const auto format = static_cast<Format>(i);
    const bool plain = format == Format::kF32 || format == Format::kF16 || format == Format::kBF16;
    if (plain || can_pack_blocks(format)) types.push_back(format);
  }
  return types;
}

// The type that a flag names, in capitals or not; kNone if it is empty.
Format type_named(const std::string& given, const char* flag) {
  if (given.empty()) return Format::kNone;
  std::string name = given;
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  std::string known;
  for (const Format format : gguf_types()) {
    if (info(format).name == name) return format;
    known += (known.empty() ? "" : ", ") + std::string(info(format).name);
  }
  throw Error(std::string(flag) + " is one of " + known + ", not " + given);
}

std::vector<std::string> gguf_type_names() {
  std::vector<std::string> names;
  for (const Format format : gguf_types()) names.emplace_back(info(format).name);
  return names;
}

TokenizerData tokenizer_arrays(const Checkpoint& checkpoint) {
  if (!checkpoint.tokenizer.tokens.empty()) return checkpoint.tokenizer;
  if (checkpoint.tokenizer.json.empty()) throw Error(checkpoint.path.string() + " has no tokenizer.json");
  TokenizerArrays arrays = Tokenizer::from_json(checkpoint.tokenizer.json).to_arrays();
  return {"", std::move(arrays.tokens), std::move(arrays.scores), std::move(arrays.types), std::move(arrays.merges)};
}

// Refuses models that could be exported but not run, before anything is written.
void check_source(const Checkpoint& checkpoint, bool with_vision) {
  const Config config = parse_config(checkpoint.config);
  require_weights(checkpoint, config);
  if (with_vision && !config.has_vision) throw Error(checkpoint.path.string() + " has no vision tower to export");
}

// What is exported to gguf and program: the checkpoint, quantised on the way where a recipe is given.
Checkpoint open_for(const ExportFlags& flags) {
  Checkpoint checkpoint;
  if (flags.quantise.recipe.empty()) {
    checkpoint = open_source(flags.model, flags.vision);
  } else {
    const QuantizeSource source = open_to_quantize(flags.model, flags.quantise);
    checkpoint = quantized_checkpoint(source.checkpoint, source.recipe,
                                      {.hqq = hqq_of(flags.quantise), .threads = flags.threads});
  }
  if (flags.image_budget > 0) set_image_budget(checkpoint, flags.image_budget);
  return checkpoint;
}

void export_gguf(const ExportFlags& flags) {
  if (flags.image_budget > 0 && !flags.with_vision) {
    throw Error("--max-vision-soft-tokens is written into the vision half of a GGUF model: give --mmproj as well");
  }
  const Checkpoint checkpoint = open_for(flags);
  GgufExport options;
  const Format type = type_named(flags.type, "--type");
  options.keep_blocks = type == Format::kNone;
  if (type != Format::kNone) options.type = type;
  options.embedding = type_named(flags.embedding_type, "--embedding-type");
  options.overwrite = overwrite_if(flags.force);
  const fs::path vision = flags.output.parent_path() / ("mmproj-" + flags.output.filename().string());
  check_output_file(flags.output, options.overwrite);
  if (flags.with_vision) check_output_file(vision, options.overwrite);
  options.chat_template = checkpoint.chat_template;
  check_source(checkpoint, flags.with_vision);
  ThreadPool pool(flags.threads);
  export_gguf_text(checkpoint, tokenizer_arrays(checkpoint), options, flags.output, pool);
  std::fprintf(stderr, "wrote %s\n", flags.output.c_str());
  if (!flags.with_vision) return;
  export_gguf_vision(checkpoint, options, vision, pool);
  std::fprintf(stderr, "wrote %s\n", vision.c_str());
}

void write_mlx(const ExportFlags& flags) {
  Checkpoint checkpoint = open_source(flags.model, flags.vision);
  if (checkpoint.tokenizer.json.empty()) {
    throw Error(checkpoint.path.string() + " has no tokenizer.json, which an MLX directory needs");
  }
  check_source(checkpoint, false);
  if (flags.no_vision) drop_vision(checkpoint);
  ThreadPool pool(flags.threads);
  export_mlx(checkpoint, {flags.bits, flags.group}, flags.model, flags.output, pool, overwrite_if(flags.force));
  std::fprintf(stderr, "wrote %s\n", flags.output.c_str());
}

void write_program(const ExportFlags& flags) {
  const Checkpoint checkpoint = open_for(flags);
  export_program(checkpoint,
                 {.backend = flags.backend,
                  .threads = flags.threads,
                  .max_seq_len = flags.max_seq_len,
                  .vision = !flags.no_vision,
                  .overwrite = overwrite_if(flags.force),
                  .source = flags.model,
                  .source_vision = flags.vision,
                  .recipe = flags.quantise.recipe,
                  .hqq = flags.quantise.recipe.empty() ? "" : flags.quantise.hqq,
                  .image_budget = flags.image_budget},
                 flags.output);
  std::fprintf(stderr, "wrote %s\n", flags.output.c_str());
}

struct ExportFormat {
  const char* name;
  void (*write)(const ExportFlags&);
};

constexpr ExportFormat kExportFormats[] = {
    {"gguf", export_gguf},
    {"mlx", write_mlx},
    {"program", write_program},
};

void write_format(const ExportFlags& flags) {
  std::string known;
  for (const ExportFormat& format : kExportFormats) {
    if (flags.format == format.name) return format.write(flags);
    known += (known.empty() ? "" : ", ") + std::string(format.name);
  }
  throw Error("--format is one of " + known + ", not " + flags.format);
}

}  // namespace

int export_command(int argc, char** argv) {
  ExportFlags flags;
  CommandLine line("gemma4 export", kExportAbout);
  line.option("--format", flags.format, "What to write: gguf, mlx or program")
      .one_of({"gguf", "mlx", "program"})
      .required();
  add_model_argument(line, flags.model, "The checkpoint to read: a directory or a .gguf file");
  line.option("--vision", flags.vision, "The vision half of a .gguf model (else looked for beside it)");
  line.option("-o,--output,--output-dir", flags.output, "The file or directory to write").required();
  line.option("--type", flags.type, "gguf: type of the matrices (bf16 unless given)")
      .suggest(gguf_type_names())
      .only_with("--format", "gguf");
  line.option("--embedding-type", flags.embedding_type, "gguf: type of the embedding table")
      .suggest(gguf_type_names())
      .only_with("--format", "gguf");
  line.flag("--mmproj", flags.with_vision, "gguf: write the vision half as well").only_with("--format", "gguf");
  line.option("--bits", flags.bits, "mlx: bits of a code: 2, 3, 4, 5, 6 or 8")
      .suggest({"2", "3", "4", "5", "6", "8"})
      .only_with("--format", "mlx");
  line.option("--group", flags.group, "mlx: columns that share a scale: 32, 64 or 128")
      .suggest({"32", "64", "128"})
      .only_with("--format", "mlx");
  line.option("--backend", flags.backend, "program: the backend that will run it")
      .one_of({"cpu", "cuda", "ref"})
      .show_default()
      .only_with("--format", "program");
  line.option("--max-seq-len", flags.max_seq_len,
              "program: tokens of prompt and answer together (default: the longest that fits in memory here, as run)")
      .between(3, 1 << 30)
      .only_with("--format", "program");
  line.flag("--no-vision", flags.no_vision,
            "Leave the vision tower out: what is written reads text alone (gguf: so it is unless --mmproj is given)")
      .excludes("--vision")
      .excludes("--mmproj");
  RecipeOptions recipe = add_recipe_flags(line, flags.quantise);
  recipe.recipe.not_with("--format", "mlx").excludes("--vision");
  recipe.hqq.needs("--quant-recipe");
  line.option("--max-vision-soft-tokens", flags.image_budget,
              "gguf (with --mmproj), program: soft tokens of a picture (default: the checkpoint's)")
      .one_of({"70", "140", "280", "560", "1120"})
      .not_with("--format", "mlx")
      .excludes("--no-vision");
  line.option("--threads", flags.threads, "Threads to convert with; 0: one a core").between(0, 1024);
  line.flag("--force", flags.force, kForceHelp);
  if (const auto code = line.parse(argc, argv)) return *code;
  write_format(flags);
  return kExitOk;
}

}  // namespace gemma4
