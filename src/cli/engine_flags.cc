#include "cli/engine_flags.h"

#include <CLI/CLI.hpp>
#include <cstdio>

namespace gemma4 {

void add_mmproj_flag(CLI::App& app, std::filesystem::path& mmproj) {
  app.add_option("--mmproj", mmproj,
                 "The vision half of a .gguf model: an mmproj file, or a Hugging Face directory to take the vision "
                 "tower from (default: the mmproj file beside the model)");
}

void add_engine_flags(CLI::App& app, EngineOptions& options) {
  app.add_option("--model,--prequantized,--bf16", options.model,
                 "The checkpoint: a Hugging Face or quantised directory, a .gguf file, or an exported program")
      ->required();
  add_mmproj_flag(app, options.mmproj);
  app.add_option("--backend", options.backend, "ref, cpu or cuda")->capture_default_str();
  app.add_option("--threads", options.threads, "Of the cpu backend; 0: one for each core")->check(CLI::Range(0, 1024));
  add_gpus_flag(app, options.gpus);
  app.add_option("--max-seq-len", options.max_seq_len, "Tokens of prompt and answer together (default: 4096)")
      ->check(CLI::Range(2, 1 << 30));
  app.add_option("--max-vision-soft-tokens", options.image_budget, "Budget of each picture (default: the checkpoint's)")
      ->check(CLI::IsMember({"70", "140", "280", "560", "1120"}));
  app.add_option("--prefill-chunk", options.chunk, "Prompt tokens of one step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
}

void add_gpus_flag(CLI::App& app, int& gpus) {
  app.add_option(
         "--gpus", gpus,
         "GPUs of this host that the model is split over, tied together by NCCL. With --backend cpu or ref: parts "
         "in this process, which share out the threads (for tests: slower than one)")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
}

std::optional<int> parse_flags(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), error.what());
    return kExitBadInput;
  }
}

}  // namespace gemma4
