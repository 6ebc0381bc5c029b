// Checkpoint: opens a model on disk by its content, and answers names with mapped weights. Names are the model's own,
// whatever the file calls them (checkpoint/names.h): "layers.3.self_attn.q_proj.weight", "embed_tokens.weight",
// "lm_head.weight" (absent where tied), "vision_tower.encoder.layers.0.mlp.up_proj.weight",
// "vision_tower.patch_embedder.position_embedding_table" (also where stored as int8: a Matrix of 2 * positions rows).
// Opening checks the container and refuses names it does not know; model/tensor_table checks shapes.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "quant/matrix.h"

namespace gemma4 {

struct Weight {
  Matrix matrix;               // 1-D tensors: one row; 3-D: leading dimensions folded into rows
  std::vector<int64_t> shape;  // as stored (logical shape for quantised weights)
  uint64_t bytes = 0;          // of all its tensors in the file
};

// The tokenizer of a checkpoint: the text of tokenizer.json, or GGUF's arrays (then json is empty).
struct TokenizerData {
  std::string json;
  std::vector<std::string> tokens;  // GGUF: [vocabulary]
  std::vector<float> scores;        // GGUF: [vocabulary] or empty
  std::vector<int32_t> types;       // GGUF token types (1 normal, 2 unknown, 3 control, 4 user defined, 6 byte)
  std::vector<std::string> merges;  // GGUF: "left right"
};

struct ProgramFile;

struct Checkpoint {
  std::filesystem::path path;
  std::string kind;                                 // "huggingface", "torchao", "gguf", "program", ...
  std::string config;                               // config.json, or the same made from GGUF metadata
  std::string generation_config;                    // empty where absent
  std::string processor_config;                     // empty where absent
  std::string chat_template, chat_template_source;  // Jinja text, and the file it is from; empty where absent
  TokenizerData tokenizer;
  std::vector<std::string> order;  // names in the order of the file or state dict
  std::map<std::string, Weight> weights;
  std::vector<std::shared_ptr<const MappedFile>> files;  // keep the views above alive
  std::vector<std::shared_ptr<const void>> owned;        // copies made on opening (unaligned or permuted tensors)
  std::shared_ptr<const ProgramFile> program;            // kind "program" alone (checkpoint/program_file.h)

  // Where weights are made when they are needed (quantized_checkpoint()), their matrices in `weights` have a format and
  // sizes alone. This makes the elements of one, and returns an empty Matrix for a weight whose elements are there.
  std::function<Matrix(const std::string& name)> make;

  // The weight `name`, which must be there, with its elements. One thread at a time. Throws Error where it is made and
  // holds a value that is not finite.
  Matrix load(const std::string& name) const {
    Matrix made = make ? make(name) : Matrix();
    return made ? made : weights.at(name).matrix;
  }

  const Weight* find(const std::string& name) const {
    const auto it = weights.find(name);
    return it == weights.end() ? nullptr : &it->second;
  }
};

// `path`: a directory (Hugging Face, quantised, or an exported program), a .gguf file, or one .safetensors file (config
// and tokenizer are then taken from beside it, and empty where absent). A folder of .gguf files is its only model.
// `vision`: an mmproj .gguf file or a Hugging Face directory whose vision tower is used; where it is empty, a .gguf
// model takes the mmproj file beside it that fits. with_vision: false leaves the tower out, wherever it is.
// Throws Error that names what is wrong.
Checkpoint open_checkpoint(const std::filesystem::path& path, const std::filesystem::path& vision = {},
                           bool with_vision = true);

// The same, for callers that read the elements of weights: refuses an exported program, whose matrices are laid out for
// one backend.
Checkpoint open_source(const std::filesystem::path& path, const std::filesystem::path& vision = {});

// Is `path` one of the files that the checkpoint is read from? Such a file must not be written.
bool is_file_of(const Checkpoint& checkpoint, const std::filesystem::path& path);

}  // namespace gemma4
