// A drafter: the small model that proposes the next tokens of Gemma 4 (`gemma4_assistant`). It is a checkpoint of its
// own beside the target's, and its names are those of checkpoint/names.h.
#pragma once

#include <filesystem>
#include <optional>

#include "checkpoint/checkpoint.h"

namespace gemma4 {

// Opens a drafter in any format that open_checkpoint() reads but an exported program. Throws Error, also where the
// checkpoint is no drafter.
Checkpoint open_drafter(const std::filesystem::path& path);

// Does this config.json say that the checkpoint is a drafter?
bool is_drafter_config(const std::string& config);

// The drafter that lies in `model` or beside it: a directory or .gguf file whose name contains "-assistant". Of several
// beside it, the one whose name begins with the model's, else the first by name. Nothing where there is none. Whether
// it fits the model is checked when that is loaded.
std::optional<std::filesystem::path> find_drafter_beside(const std::filesystem::path& model);

}  // namespace gemma4
