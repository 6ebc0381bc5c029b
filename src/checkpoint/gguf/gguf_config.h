// GGUF metadata as the rest of the program knows it: config.json, generation_config.json, processor_config.json and the
// tokenizer's arrays. Keys: gguf's constants.py and llama.cpp's conversion/gemma.py (text), tools/mtmd/clip.cpp
// (vision).
#pragma once

#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf/gguf.h"

namespace gemma4 {

bool is_vision_gguf(const Gguf& gguf);  // the mmproj half of a model

// Throws Error: another architecture, a key that is missing, contradicts another or is of a kind we cannot express.
// `vision` may be null: the config then says that there is none.
std::string config_from_gguf(const Gguf& text, const Gguf* vision);
std::string generation_config_from_gguf(const Gguf& text);
TokenizerData tokenizer_from_gguf(const Gguf& text);

inline constexpr const char* kRopeFreqs = "rope_freqs.weight";  // stands for the partial rotation of full layers

}  // namespace gemma4
