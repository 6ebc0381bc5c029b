// A vision tower of another file: of an mmproj .gguf file or of a Hugging Face directory, for a text model of any
// format.
#pragma once

#include <filesystem>

#include "checkpoint/checkpoint.h"

namespace gemma4 {

// Adds the tower and what its file says of it to the config; a tower that the checkpoint has already makes way. Throws
// Error where `source` holds none, or one of another size.
void add_vision(Checkpoint& checkpoint, const std::filesystem::path& source);

bool describes_vision(const Checkpoint& checkpoint);  // config.json has a vision_config

// Makes `budget` the soft tokens that a picture takes where nobody says otherwise (70, 140, 280, 560 or 1120, which the
// caller checks). Throws Error where the model has no tower, or its configs are no JSON objects.
void set_image_budget(Checkpoint& checkpoint, int budget);

// The same model without its tower. An exported program keeps what it has.
void drop_vision(Checkpoint& checkpoint);

}  // namespace gemma4
