// What is this, if it is no checkpoint that runs here? People download adapters, drafters, pointers and other members
// of the family. Each gets its own sentence, with what to do. It is said before any tensor is looked at.
#pragma once

#include <filesystem>
#include <span>
#include <string>

namespace gemma4 {

// Throws Error where config.json is another model's: a mixture of experts, E2B or E4B, the 12B unified model, Gemma 3
// ... `what` names the checkpoint. An empty text and a drafter's config pass.
void refuse_other_models(const std::string& config, const std::string& what);

// Throws Error: why `directory`, which has no config.json, is no checkpoint (an adapter, a folder of .gguf files, ...).
[[noreturn]] void refuse_directory(const std::filesystem::path& directory);

// Throws Error if the file holds the pointer that git-lfs keeps in its place.
void refuse_lfs_pointer(std::span<const std::byte> bytes, const std::string& what);

// Throws Error: there is nothing at `path`, which may be a name on the Hugging Face hub.
[[noreturn]] void refuse_missing(const std::filesystem::path& path);

// What else a checkpoint can be taken from, where its quantisation (quant_method of config.json) is not read.
std::string way_around(const std::string& quant_method);

}  // namespace gemma4
