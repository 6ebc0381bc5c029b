// ggml's types whose values come from a table: IQ1 to IQ4, TQ1_0, TQ2_0, MXFP4 and NVFP4. Every value is a small whole
// number times a scale that 16 or 32 of them share, so a matrix of such a type is an int8 matrix with float32 scales,
// exactly. No kernel reads these types: a checkpoint's reader converts them (checkpoint/gguf/gguf_checkpoint.cc).
// Source: ggml-common.h and ggml-quants.c (dequantize_row_*); the same in gguf's quants.py.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace gemma4 {

struct CodebookType {
  std::string_view name;  // "IQ4_XS"
  uint32_t number;        // ggml_type of ggml.h
  int block_cols, block_bytes;
  int group;  // columns that share a scale
  // One block: codes [block_cols], scales [block_cols / group].
  void (*unpack)(const uint8_t* block, int8_t* codes, float* scales);
};

std::span<const CodebookType> codebook_types();

// null: it is another type's number.
const CodebookType* codebook_of_ggml_type(uint32_t number);

// E2M1, the 4-bit floating point of MXFP4 and NVFP4: twice the value of each code.
inline constexpr int8_t kE2m1Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// E4M3 without its sign: 4 bits of exponent, 3 of fraction. 0x7f, which is no number, reads as 480.
// Source of both: OCP Microscaling Formats (MX) 1.0, OCP 8-bit Floating Point 1.0.
float e4m3_magnitude(uint8_t bits);

}  // namespace gemma4
