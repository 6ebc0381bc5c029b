// Names: which tensors a Gemma 4 checkpoint may hold, what each file format calls them, and in which order ExecuTorch's
// state dict lists them. There is one table (names.cc), and the readers and writers of every format use it. Shapes:
// model/tensor_table.h.
//
// The model's own names are Hugging Face's without their prefixes: "layers.3.self_attn.q_proj.weight". Sources:
// transformers' modeling_gemma4.py, and for GGUF llama.cpp's constants.py and clip-impl.h. A drafter's tensors have the
// same names, and pre_projection and post_projection besides (modeling_gemma4_assistant.py).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace gemma4 {

// The model's name for a Hugging Face name: without any "model." and "language_model." in front, and without the
// ".linear" of the vision tower's projections. Other names come back unchanged.
std::string from_huggingface_name(std::string_view name);

// The Hugging Face name (with "model.language_model.") of a model name.
std::string to_huggingface_name(std::string_view name);

// That of a drafter's tensor ("model." in front of all but the projections).
std::string to_huggingface_drafter_name(std::string_view name);

// The model's name for a GGUF one ("blk.3.attn_q.weight", "v.blk.0.ln1.weight"), or nothing where the table has none.
std::optional<std::string> from_gguf_name(std::string_view name);

// The GGUF name of a model name, or nothing.
std::optional<std::string> to_gguf_name(std::string_view name);

// Is `name` a tensor of the model (any layer index)?
bool is_model_tensor(std::string_view name);
bool is_vision_tensor(std::string_view name);

// Sorts model names in the order of ExecuTorch's state dict: parameters in module order, then buffers. Names that are
// not in the table come last, sorted by name.
void sort_as_state_dict(std::vector<std::string>& names);

// Is the tensor a buffer of the PyTorch module? Buffers (layer_scalar, std_*, the codes of the position table) keep the
// type that the source has; parameters are cast to bf16.
bool is_buffer(std::string_view name);

}  // namespace gemma4
