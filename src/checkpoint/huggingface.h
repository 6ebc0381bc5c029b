// Hugging Face directories: one model.safetensors, or shards named by model.safetensors.index.json; config.json,
// generation_config.json, processor_config.json and tokenizer.json beside them.
#pragma once

#include <filesystem>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"

namespace gemma4 {

// A directory in either format ("huggingface" or "torchao", which its metadata says). Throws Error.
Checkpoint open_safetensors_directory(const std::filesystem::path& directory);

// A single .safetensors file. Config and tokenizer are read if they are beside it, and empty otherwise.
Checkpoint open_safetensors_file(const std::filesystem::path& path);

// Reads the configs and the tokenizer in `directory`; empty where absent.
void read_side_files(Checkpoint& checkpoint, const std::filesystem::path& directory);

// Adds one unquantised tensor under the model's name `name`. Throws Error: the model has no such name, weights cannot
// have this type, there are no elements, the name was added before.
void add_plain(Checkpoint& checkpoint, const std::string& name, const SafetensorsEntry& entry, const Safetensors& file,
               const std::string& what);

// The bytes of `entry` as a tensor [rows, cols]. If they are unaligned in the file, the tensor is a copy that
// `checkpoint` owns.
Tensor view_of(Checkpoint& checkpoint, const SafetensorsEntry& entry, const Safetensors& file, int64_t rows,
               int64_t cols);

}  // namespace gemma4
