// Hugging Face directories: one model.safetensors, or shards named by model.safetensors.index.json; config.json,
// generation_config.json, processor_config.json and tokenizer.json beside them.
#pragma once

#include <filesystem>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"

namespace gemma4 {

// A directory of either kind ("huggingface" or "torchao", by what its metadata says). Throws Error.
Checkpoint open_safetensors_directory(const std::filesystem::path& directory);

// One .safetensors file by itself; config and tokenizer are read where they lie beside it, and empty otherwise.
Checkpoint open_safetensors_file(const std::filesystem::path& path);

// The configs and the tokenizer that lie in `directory`; empty where absent.
void read_side_files(Checkpoint& checkpoint, const std::filesystem::path& directory);

// Adds one unquantised tensor under the model's name `name`. Throws Error: a name the model has not, a type that is no
// weight's, no elements, a name that is there already.
void add_plain(Checkpoint& checkpoint, const std::string& name, const SafetensorsEntry& entry, const Safetensors& file,
               const std::string& what);

// The bytes of `entry` as a tensor [rows, cols]; where they lie unaligned in the file, as a copy that `checkpoint`
// owns.
Tensor view_of(Checkpoint& checkpoint, const SafetensorsEntry& entry, const Safetensors& file, int64_t rows,
               int64_t cols);

}  // namespace gemma4
