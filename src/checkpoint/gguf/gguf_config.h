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

// Ollama's files hold both halves of a model; llama.cpp's have the vision half in a file of its own (mmproj).
bool holds_vision(const Gguf& gguf);

// Throws Error where it is an adapter or another member of the family, in a sentence that says which.
void refuse_other_ggufs(const Gguf& gguf);

// Throws Error: another architecture, or a key that is missing, contradicts another or has no counterpart in
// config.json.
std::string config_from_gguf(const Gguf& text);                           // it says that there is no tower
std::string vision_config_from_gguf(const Gguf& vision, int64_t hidden);  // the fields of a tower for such a model
std::string generation_config_from_gguf(const Gguf& text);
TokenizerData tokenizer_from_gguf(const Gguf& text);

inline constexpr const char* kRopeFreqs = "rope_freqs.weight";  // stands for the partial rotation of full layers

}  // namespace gemma4
