// Opens GGUF models: one .gguf file or the first of several, and the vision half (an "mmproj" file), which is named or
// found beside it. Weights stay mapped, in the formats of the file. Only the patch embedding (3.5 MB at 31B) is copied,
// because llama.cpp stores its columns in another order.
#pragma once

#include <filesystem>
#include <memory>

#include "base/mapped_file.h"
#include "checkpoint/checkpoint.h"

namespace gemma4 {

// `file`: the mapped text model, or its first shard. `vision`: an mmproj .gguf file, or a Hugging Face directory whose
// vision tower is used. If it is empty, a .gguf file of the same folder is used whose name contains "mmproj" and whose
// size fits; without one the model reads text only.
Checkpoint open_gguf(std::shared_ptr<const MappedFile> file, const std::filesystem::path& vision);

}  // namespace gemma4
