// Quantises a whole checkpoint: reads one tensor at a time from a Hugging Face directory and writes a directory in
// torchao's format, as ExecuTorch does (docs/FORMATS.md). All checks that can refuse the input come before the first
// write, and model.safetensors gets its name only when it is complete. `gemma4 export` takes the same weights without
// the directory.
#pragma once

#include <filesystem>
#include <memory>

#include "base/file.h"
#include "checkpoint/checkpoint.h"
#include "quant/recipe.h"

namespace gemma4 {

struct QuantizeOptions {
  HqqArithmetic hqq = HqqArithmetic::kF32;
  int threads = 0;  // 0: all cores
  Overwrite overwrite = Overwrite::kRefuse;
};

struct QuantizeReport {
  int64_t tensors = 0;    // logical
  uint64_t bytes_in = 0;  // of the weights read
  uint64_t bytes_out = 0;
};

// The output directory is new or empty. With Overwrite::kReplace it may hold files: those that a result has are
// replaced (or removed, where this model lacks them), all others stay. Throws Error: the source is quantised already, a
// weight does not divide into the groups of the recipe, the output is the source, is not empty or is being written by
// another process, the disk is full. Throws DeviceError where a file of the source changed meanwhile.
QuantizeReport quantize_checkpoint(const Checkpoint& source, const Recipe& recipe, const std::filesystem::path& output,
                                   const QuantizeOptions& options);

// The checkpoint that opening the result of quantize_checkpoint() would give, without writing it: Checkpoint::load()
// quantises a weight each time that it is asked for, so memory holds only those in use. It keeps `source`.
// options.overwrite means nothing. Throws Error as quantize_checkpoint() does of the source and the recipe.
Checkpoint quantized_checkpoint(std::shared_ptr<const Checkpoint> source, const Recipe& recipe,
                                const QuantizeOptions& options);

}  // namespace gemma4
