// The flags that all commands with an Engine share.
#pragma once

#include "cli/command_line.h"
#include "engine/engine.h"

namespace gemma4 {

// --mmproj and --no-vision, for the commands that open one checkpoint.
void add_vision_flags(CommandLine& line, std::filesystem::path& mmproj, bool& vision);

// --model (--prequantized, --bf16), --mmproj, --no-vision, --chat-template, --max-seq-len, --kv-memory, --cache-tokens,
// --max-vision-soft-tokens, --prefill-chunk, and those of add_device_flags() and add_drafter_flags().
void add_engine_flags(CommandLine& line, EngineOptions& options);

// --drafter, --draft-tokens. The commands of add_engine_flags() have them.
void add_drafter_flags(CommandLine& line, EngineOptions& options);

void add_template_flag(CommandLine& line, EngineOptions& options);

// One line on standard error where the checkpoint's chat template is none that we know.
void warn_of_template(const Engine& engine);

// --backend, --threads, --gpus, --split, --gpu-layers.
void add_device_flags(CommandLine& line, EngineOptions& options);

// One line on standard error: what is where (Model::placement()). None where that is empty.
void report_placement(const std::string& placement);

}  // namespace gemma4
