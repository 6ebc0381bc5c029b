// Converts GGUF metadata to what the rest of the program reads: config.json, generation_config.json,
// processor_config.json and the arrays of the tokenizer. Keys: gguf's constants.py and llama.cpp's conversion/gemma.py
// (text), tools/mtmd/clip.cpp (vision).
#pragma once

#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf/gguf.h"

namespace gemma4 {

bool is_vision_gguf(const Gguf& gguf);   // the mmproj half of a model
bool is_drafter_gguf(const Gguf& gguf);  // gemma4-assistant; its config.json is one of checkpoint/drafter.h

// Throws Error: another architecture, or a key that is missing, contradicts another or has no counterpart in
// config.json.
// `vision` may be null: the config then says that there is none.
std::string config_from_gguf(const Gguf& text, const Gguf* vision);
std::string generation_config_from_gguf(const Gguf& text);
TokenizerData tokenizer_from_gguf(const Gguf& text);

inline constexpr const char* kRopeFreqs = "rope_freqs.weight";  // stands for the partial rotation of full layers

}  // namespace gemma4
