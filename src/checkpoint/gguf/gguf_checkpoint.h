// Opening GGUF models: one .gguf file or the first of several, with the vision half (an "mmproj" file) beside it or
// given. Weights stay in the file's own formats, mapped; only the patch embedding (3.5 MB at 31B) is copied, because
// llama.cpp stores its columns in another order.
#pragma once

#include <filesystem>

#include "checkpoint/checkpoint.h"

namespace gemma4 {

// `vision`: an mmproj .gguf file, a Hugging Face directory to take the vision tower from, or empty: then a fitting
// .gguf file in the same folder whose name contains "mmproj" is used, and without one the model reads text only.
Checkpoint open_gguf(const std::filesystem::path& path, const std::filesystem::path& vision);

}  // namespace gemma4
