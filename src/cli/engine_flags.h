// The flags that every verb with an Engine shares, and how a command line is read.
#pragma once

#include <optional>

#include "engine/engine.h"

namespace CLI {
class App;
}

namespace gemma4 {

// --mmproj, of every verb that opens one checkpoint.
void add_mmproj_flag(CLI::App& app, std::filesystem::path& mmproj);

// --model (--prequantized, --bf16), --mmproj, --backend, --threads, --gpus, --max-seq-len, --max-vision-soft-tokens,
// --prefill-chunk.
void add_engine_flags(CLI::App& app, EngineOptions& options);

// --gpus alone, for the verbs that have no Engine.
void add_gpus_flag(CLI::App& app, int& gpus);

// Nothing where the flags were read; else the exit code, with help or one line about the mistake printed.
std::optional<int> parse_flags(CLI::App& app, int argc, char** argv);

}  // namespace gemma4
