#include "cli/engine_flags.h"

#include <cstdio>

#include "backend/gpu.h"
#include "checkpoint/program_file.h"
#include "engine/drafts/draft_length.h"
#include "engine/drafts/draft_source.h"

namespace gemma4 {

std::string no_model(const std::string& command) {
  return "there is no model: " + command + " MODEL, or --model MODEL";
}

CommandLine::Option add_model_argument(CommandLine& line, std::filesystem::path& model, const std::string& help) {
  return line.option(std::string(kModelNames) + ",MODEL", model, help).required(no_model(line.name()));
}

void add_vision_flags(CommandLine& line, std::filesystem::path& mmproj, bool& vision) {
  line.option("--mmproj", mmproj,
              "The vision tower of another file: an mmproj .gguf file, or a Hugging Face directory (default: the "
              "checkpoint's own; for a .gguf model the mmproj file beside it)");
  line.flag("--no-vision{false}", vision, "Leave the vision tower out: the model reads text alone")
      .excludes("--mmproj");
}

void add_engine_flags(CommandLine& line, EngineOptions& options) {
  add_vision_flags(line, options.mmproj, options.vision);
  add_template_flag(line, options);
  add_device_flags(line, options);
  add_drafter_flags(line, options);
  line.option(
          "--max-seq-len", options.max_seq_len,
          "Tokens of prompt and answer together (default: the longest of which one sequence fits in memory, in steps "
          "of 1024, at most what the model was made for)")
      .between(2, 1 << 30);
  line.option("--kv-memory", options.kv_memory,
              "Memory of the key-value cache (8G, 512M); without it, what the context needs of what is free")
      .bytes();
  line.option("--cache-tokens", options.cache_tokens, "Tokens that the key-value cache holds, in place of --kv-memory")
      .between(0, 1 << 30)
      .excludes("--kv-memory");
  line.option("--max-vision-soft-tokens", options.image_budget, "Budget of each picture (default: the checkpoint's)")
      .one_of({"70", "140", "280", "560", "1120"})
      .excludes("--no-vision");
  line.option("--prefill-chunk", options.chunk, "Prompt tokens of one step").between(1, 1 << 20).show_default();
}

void add_drafter_flags(CommandLine& line, EngineOptions& options) {
  line.option("--drafter", options.drafter,
              "Who proposes the next tokens, which one step then verifies, so that answers are the same and come "
              "sooner: the directory or .gguf file of the model's drafter, or ngram for look-up in the conversation")
      .file()
      .suggest({kNgramDrafter});
  line.option(
          "--draft-tokens", options.draft_tokens,
          "Proposed tokens of one answer in a step; 0: none. Where --drafter names nobody, by the drafter beside the "
          "model. Without it: as many as pay")
      .between(0, kDraftsMax);
}

CommandLine::Option add_template_flag(CommandLine& line, EngineOptions& options) {
  return line
      .option("--chat-template", options.chat_template,
              "How conversations are written for the model: as Google's template of spring or of July 2026 does "
              "(default: the checkpoint's, and july where it has none)")
      .one_of({"spring", "july"});
}

void warn_of_template(const Engine& engine) {
  const std::string& warning = engine.chat_template().warning;
  if (!warning.empty()) std::fprintf(stderr, "gemma4: %s\n", warning.c_str());
}

void add_device_flags(CommandLine& line, EngineOptions& options) {
  options.backend = "auto";
  line.option("--backend", options.backend, "cuda, cpu, ref (the definition, slow); auto: cuda where a GPU can be used")
      .one_of({"auto", "cuda", "cpu", "ref"})
      .show_default();
  line.option("--threads", options.threads, "Of the cpu backend; 0: one for each core").between(0, 1024);
  options.precise = false;
  line.flag("--precise", options.precise,
            "cpu: compute prompts and pictures in float32, not in bf16 on the processor's matrix units (AMX). "
            "Slower; then a prompt's numbers are those of its tokens one by one");
  line.option("--gpus", options.gpus,
              "GPUs of this host that the model is split over. With --backend cpu or ref: parts in this process, which "
              "share out the threads (for tests: slower than one)")
      .between(1, 64)
      .show_default();
  line.option("--split", options.split,
              "With --gpus: tensor gives each a part of every layer, tied together by NCCL; layers gives each whole "
              "layers, which work one after another (for cards that cannot reach each other's memory)")
      .one_of({"tensor", "layers"})
      .show_default()
      .needs("--gpus");
  line.option("--gpu-layers", options.gpu_layers,
              "With --backend cuda: only the first N layers on the GPU, or auto for as many as fit; the others on the "
              "CPU. For a model that is larger than the card")
      .suggest({"auto"});
}

std::string choose_backend(EngineOptions& options) {
  if (options.backend != "auto") return "";
  if (!options.gpu_layers.empty()) return options.backend = "cuda", "--gpu-layers asks for it";
  std::error_code ignored;
  if (std::filesystem::is_regular_file(options.model / kProgramFile, ignored)) {
    options.backend = open_program(options.model).program->header.backend;
    return "the program was exported for it";
  }
  const std::string why_not = why_no_gpu();
  options.backend = why_not.empty() ? "cuda" : "cpu";
  return why_not.empty() ? "a GPU is here" : why_not;
}

void report_backend(const EngineOptions& options, const std::string& why) {
  std::fprintf(stderr, "gemma4: backend %s%s\n", options.backend.c_str(),
               why.empty() ? "" : (" (" + why + ")").c_str());
}

void report_placement(const std::string& placement) {
  if (!placement.empty()) std::fprintf(stderr, "gemma4: %s\n", placement.c_str());
}

}  // namespace gemma4
