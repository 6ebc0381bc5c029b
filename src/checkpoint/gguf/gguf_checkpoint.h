// Opens GGUF models: one .gguf file or the first of several, and the vision half (an "mmproj" file), which is named or
// found beside it. Weights stay mapped, in the formats of the file. Only the patch embedding (3.5 MB at 31B) is copied,
// because llama.cpp stores its columns in another order.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "base/mapped_file.h"
#include "checkpoint/checkpoint.h"

namespace gemma4 {

// `file`: the mapped text model, or its first shard. The text half alone.
Checkpoint open_gguf(std::shared_ptr<const MappedFile> file);

// The file beside a text model, by name the first that contains "mmproj", whose tower fits it; empty where none does.
std::filesystem::path mmproj_beside(const Checkpoint& checkpoint);

bool names_mmproj(std::string file_name);  // is it, by its name, a vision half?

// The vision half for a text model of this width; its config.json has the tower's fields alone.
Checkpoint open_mmproj(const std::filesystem::path& path, int64_t hidden);

}  // namespace gemma4
