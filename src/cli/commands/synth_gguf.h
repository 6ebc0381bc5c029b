// The GGUF output of `gemma4 synth`: a text model of random Q4_0 blocks, whose embedding is Q6_K and also the output
// head, as in llama.cpp's Q4_0 files.
#pragma once

#include <filesystem>
#include <string>

#include "base/file.h"
#include "base/threads.h"
#include "model/config.h"

namespace gemma4 {

// Writes `output` (a .gguf file) for this config.json; returns its size in bytes. Throws Error.
uint64_t synth_gguf(const std::string& config_json, const Config& config, const std::string& generation_config,
                    const std::filesystem::path& output, Overwrite overwrite, ThreadPool& threads);

}  // namespace gemma4
