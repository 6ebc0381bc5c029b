// Quantises a whole checkpoint: reads one tensor at a time from a Hugging Face directory and writes a directory in the
// original system's format (docs/FORMATS.md). Nothing is written before everything that can be refused has been
// checked, and model.safetensors appears under its name only when it is whole.
#pragma once

#include <filesystem>

#include "checkpoint/checkpoint.h"
#include "quant/recipe.h"

namespace gemma4 {

struct QuantizeOptions {
  HqqArithmetic hqq = HqqArithmetic::kF32;
  int threads = 0;  // 0: all cores
};

struct QuantizeReport {
  int64_t tensors = 0;    // logical
  uint64_t bytes_in = 0;  // of the weights read
  uint64_t bytes_out = 0;
};

// Throws Error: a source that is quantised already, a weight the recipe cannot cut into groups, an output that is the
// source or holds another model, a full disk.
QuantizeReport quantize_checkpoint(const Checkpoint& source, const Recipe& recipe, const std::filesystem::path& output,
                                   const QuantizeOptions& options);

}  // namespace gemma4
