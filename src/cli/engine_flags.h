// The flags that every command with an Engine shares.
#pragma once

#include "cli/command_line.h"
#include "engine/engine.h"

namespace gemma4 {

// --mmproj, of every command that opens one checkpoint.
void add_mmproj_flag(CommandLine& line, std::filesystem::path& mmproj);

// --model (--prequantized, --bf16), --mmproj, --backend, --threads, --gpus, --max-seq-len, --max-vision-soft-tokens,
// --prefill-chunk.
void add_engine_flags(CommandLine& line, EngineOptions& options);

// --gpus alone, for the commands that have no Engine.
void add_gpus_flag(CommandLine& line, int& gpus);

}  // namespace gemma4
