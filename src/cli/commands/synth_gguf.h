// The GGUF half of `gemma4 synth`: a text model of random Q4_0 blocks, with a Q6_K table that is the head as well, as
// llama.cpp's Q4_0 files have it.
#pragma once

#include <filesystem>
#include <string>

#include "base/threads.h"
#include "model/config.h"

namespace gemma4 {

// Writes `output` (a .gguf file) for this config.json; returns its size in bytes. Throws Error.
uint64_t synth_gguf(const std::string& config_json, const Config& config, const std::string& generation_config,
                    const std::filesystem::path& output, ThreadPool& threads);

}  // namespace gemma4
