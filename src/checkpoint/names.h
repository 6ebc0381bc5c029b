// Names: which tensors a Gemma 4 checkpoint may hold, what each file format calls them, and in which order the original
// system's state dict lists them. One table (names.cc); the readers and writers of every format go through it.
//
// The model's own names are those of the original system (spec section 2.4): "layers.3.self_attn.q_proj.weight".
// Sources: transformers' modeling_gemma4.py for Hugging Face names, llama.cpp's constants.py and clip-impl.h for
// GGUF's.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace gemma4 {

// The model's name for a Hugging Face one: any "model." and "language_model." in front is dropped, and so is the
// ".linear" of the vision tower's projections. A name of another shape comes back as it is.
std::string from_huggingface_name(std::string_view name);

// The Hugging Face name (with "model.language_model.") of a model name.
std::string to_huggingface_name(std::string_view name);

// The model's name for a GGUF one ("blk.3.attn_q.weight", "v.blk.0.ln1.weight"), or nothing where the table has none.
std::optional<std::string> from_gguf_name(std::string_view name);

// The GGUF name of a model name, or nothing.
std::optional<std::string> to_gguf_name(std::string_view name);

// Is `name` a tensor of the model (any layer index)?
bool is_model_tensor(std::string_view name);
bool is_vision_tensor(std::string_view name);

// Sorts model names as the original system's state dict has them: parameters in module order, then buffers. Names
// outside the table come last, by name.
void sort_as_state_dict(std::vector<std::string>& names);

// What a tensor is to the original system: buffers (layer_scalar, std_*, the position table's codes) keep the type that
// the source has, parameters are cast to bf16.
bool is_buffer(std::string_view name);

}  // namespace gemma4
