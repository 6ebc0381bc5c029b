// The flags that all commands with an Engine share.
#pragma once

#include "cli/command_line.h"
#include "engine/engine.h"

namespace gemma4 {

// The checkpoint, which every command takes as MODEL, -m or --model (--model-dir, --prequantized, --bf16).
constexpr const char* kModelNames = "-m,--model,--model-dir,--prequantized,--bf16";
constexpr const char* kEngineModelHelp =
    "The checkpoint: a Hugging Face or quantised directory, a .gguf file, or an exported program";
// The sentence where it is missing; `command`: "gemma4 serve".
std::string no_model(const std::string& command);
// The option is required.
CommandLine::Option add_model_argument(CommandLine& line, std::filesystem::path& model, const std::string& help);

// --mmproj and --no-vision, for the commands that open one checkpoint.
void add_vision_flags(CommandLine& line, std::filesystem::path& mmproj, bool& vision);

// All but the model: --mmproj, --no-vision, --chat-template, --max-seq-len, --kv-memory, --cache-tokens,
// --max-vision-soft-tokens, --prefill-chunk, and those of add_device_flags() and add_drafter_flags().
void add_engine_flags(CommandLine& line, EngineOptions& options);

// --drafter, --draft-tokens. The commands of add_engine_flags() have them.
void add_drafter_flags(CommandLine& line, EngineOptions& options);

CommandLine::Option add_template_flag(CommandLine& line, EngineOptions& options);

// One line on standard error where the checkpoint's chat template is none that we know.
void warn_of_template(const Engine& engine);

// --backend (auto unless given), --threads, --gpus, --split, --gpu-layers.
void add_device_flags(CommandLine& line, EngineOptions& options);

// In place of "auto": the backend that an exported program is for; else cuda where a GPU can be used, else cpu. Returns
// why, in words, and "" where a backend was asked for.
std::string choose_backend(EngineOptions& options);

// One line on standard error: which backend, and why.
void report_backend(const EngineOptions& options, const std::string& why);

// One line on standard error: what is where (Model::placement()). None where that is empty.
void report_placement(const std::string& placement);

}  // namespace gemma4
