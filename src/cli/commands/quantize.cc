#include <sys/resource.h>

#include <chrono>

#include "cli/cli.h"
#include "cli/engine_flags.h"
#include "cli/recipe_flags.h"

namespace gemma4 {

int quantize_command(int argc, char** argv) {
  CommandLine line("gemma4 quantize", "Turn a Hugging Face checkpoint into a quantised one, once.");
  std::filesystem::path model_dir;
  std::string output = "gemma4-31b-int4";
  RecipeFlags flags{.recipe = "default"};
  QuantizeOptions options;
  add_model_argument(line, model_dir, "Hugging Face directory");
  line.option("-o,--output", output, "directory to write; new or empty, unless --force").file().show_default();
  add_recipe_flags(line, flags).recipe.show_default();
  line.option("--threads", options.threads, "threads (0: all cores)").between(0, 1024);
  bool force = false;
  line.flag("--force", force, kForceHelp);
  if (const auto code = line.parse(argc, argv)) return *code;
  options.overwrite = overwrite_if(force);
  options.hqq = hqq_of(flags);
  const auto start = std::chrono::steady_clock::now();
  const QuantizeSource source = open_to_quantize(model_dir, flags);
  const QuantizeReport report = quantize_checkpoint(*source.checkpoint, source.recipe, output, options);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::fprintf(stderr, "quantised %lld tensors with recipe %s: %.1f MB to %.1f MB in %.1f s, peak memory %.0f MB\n",
               static_cast<long long>(report.tensors), flags.recipe.c_str(), static_cast<double>(report.bytes_in) / 1e6,
               static_cast<double>(report.bytes_out) / 1e6, seconds, static_cast<double>(usage.ru_maxrss) / 1e3);
  std::fprintf(stderr, "written to %s; try: gemma4 run %s Hello\n", output.c_str(), output.c_str());
  return kExitOk;
}

}  // namespace gemma4
