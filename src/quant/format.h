// Format: how one weight matrix is stored: the list of all formats and a table of their sizes. bf16 is one of them.
// unpack_row() in quant/pack.h alone defines what the bytes of a format mean.
#pragma once

#include <cstdint>
#include <string_view>

namespace gemma4 {

enum class Format : uint8_t {
  kNone,
  kF32,
  kF16,
  kBF16,
  // torchao Int4Tensor: codes U8 [rows, cols/2], even column in the low nibble; scale and zero BF16 [cols/group, rows]
  // (transposed); w = (code - zero) * scale, zero whole for min-max and fractional for HQQ. GPTQ's and AWQ's scales are
  // F16; then zero is F16, too.
  kInt4,
  // torchao IntxUnpackedToInt8Tensor: codes I8 [rows, cols]; scale BF16 or F32 [rows, cols/group]; w = code * scale.
  kInt8,
  // ggml blocks, each row a whole number of them, as in a GGUF file.
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};

struct FormatInfo {
  std::string_view name;
  int block_cols;   // columns in a block; 1 for the element types, 0 where the matrix's `group` decides
  int block_bytes;  // bytes of a block; 0 where codes and scales are stored apart
};

constexpr FormatInfo kFormats[] = {
    {"none", 1, 0},     {"f32", 1, 4},      {"f16", 1, 2},      {"bf16", 1, 2},     {"int4", 0, 0},   {"int8", 0, 0},
    {"q4_0", 32, 18},   {"q4_1", 32, 20},   {"q5_0", 32, 22},   {"q5_1", 32, 24},   {"q8_0", 32, 34}, {"q2_K", 256, 84},
    {"q3_K", 256, 110}, {"q4_K", 256, 144}, {"q5_K", 256, 176}, {"q6_K", 256, 210},
};

constexpr const FormatInfo& info(Format format) { return kFormats[static_cast<int>(format)]; }
constexpr bool is_ggml_block(Format format) { return format >= Format::kQ4_0; }

}  // namespace gemma4
