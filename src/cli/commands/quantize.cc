#include <sys/resource.h>

#include <chrono>

#include "base/check.h"
#include "checkpoint/quantize_checkpoint.h"
#include "cli/cli.h"
#include "cli/engine_flags.h"
#include "model/tensor_table.h"

namespace gemma4 {
namespace {

RecipeModel recipe_model(const Config& config) {
  RecipeModel model{config.layers, {}};
  for (int i = 0; i < config.layers; ++i) {
    if (config.kinds[static_cast<size_t>(i)] == kFull) model.full.insert(i);
  }
  return model;
}

std::string recipe_help() {
  std::string text = "one of";
  for (const std::string& name : builtin_recipe_names()) text += " " + name;
  return text + ", or a JSON file of rules";
}

}  // namespace

int quantize_command(int argc, char** argv) {
  CommandLine line("gemma4 quantize", "Turn a Hugging Face checkpoint into a quantised one, once.");
  std::filesystem::path model_dir;
  std::string output = "./gemma4_31b_int4", recipe_name = "default", hqq = "f32";
  QuantizeOptions options;
  add_model_argument(line, model_dir, "Hugging Face directory").required();
  line.option("-o,--output", output, "directory to write; new or empty, unless --force").file().show_default();
  line.option("--quant-recipe,--recipe", recipe_name, recipe_help()).file().show_default();
  line.option("--threads", options.threads, "threads (0: all cores)").between(0, 1024);
  line.option("--hqq", hqq, "arithmetic of HQQ: f32, or f16 as the original has it on a GPU")
      .one_of({"f32", "f16"})
      .show_default();
  bool force = false;
  line.flag("--force", force, kForceHelp);
  if (const auto code = line.parse(argc, argv)) return *code;
  options.overwrite = overwrite_if(force);
  options.hqq = hqq == "f16" ? HqqArithmetic::kF16 : HqqArithmetic::kF32;
  const auto start = std::chrono::steady_clock::now();
  if (!std::filesystem::is_directory(model_dir)) throw Error("there is no model directory " + model_dir.string());
  const Checkpoint source = open_source(model_dir);
  const Config config = parse_config(source.config);
  require_weights(source, config);
  const Recipe recipe = load_recipe(recipe_name, recipe_model(config));
  const QuantizeReport report = quantize_checkpoint(source, recipe, output, options);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::fprintf(stderr, "quantised %lld tensors with recipe %s: %.1f MB to %.1f MB in %.1f s, peak memory %.0f MB\n",
               static_cast<long long>(report.tensors), recipe_name.c_str(), static_cast<double>(report.bytes_in) / 1e6,
               static_cast<double>(report.bytes_out) / 1e6, seconds, static_cast<double>(usage.ru_maxrss) / 1e3);
  std::fprintf(stderr, "written to %s; try: gemma4 run %s Hello\n", output.c_str(), output.c_str());
  return kExitOk;
}

}  // namespace gemma4
