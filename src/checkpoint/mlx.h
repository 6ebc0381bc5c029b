// MLX's affine quantisation, reading and writing: w = code * scale + bias for each group of columns, codes a
// little-endian bit stream along the row in uint32 words, scales and biases [rows, groups] in the weights' type.
// Source: mlx.core.quantize and mlx/backend/cpu/quantized.cpp.
#pragma once

#include <cstdint>
#include <filesystem>

#include "base/file.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"

namespace gemma4 {

struct MlxQuantization {
  int bits = 4;
  int group = 64;
};

// One row as mlx.core.quantize makes it of bf16 values: cols * bits / 32 words, cols / group scales and biases (bf16).
void mlx_quantize_row(const float* in, int64_t cols, const MlxQuantization& q, uint32_t* words, uint16_t* scales,
                      uint16_t* biases);

// Writes a directory that mlx-lm and mlx-vlm load: model.safetensors, config.json with "quantization", and the
// tokenizer's and processor's files of `source`, where they exist. The directory is new or empty unless `overwrite`
// says otherwise. Throws Error.
void export_mlx(const Checkpoint& checkpoint, const MlxQuantization& q, const std::filesystem::path& source,
                const std::filesystem::path& directory, ThreadPool& pool, Overwrite overwrite = Overwrite::kRefuse);

}  // namespace gemma4
