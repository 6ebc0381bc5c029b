// ggml's block formats (Q4_0 ... Q6_K): bytes to floats, and for the simple ones floats to bytes. Layouts:
// docs/FORMATS.md.
#pragma once

#include <cstdint>

#include "quant/format.h"

namespace gemma4 {

// `blocks` holds cols / block_cols blocks; writes cols floats.
void unpack_blocks(Format format, const uint8_t* blocks, int64_t cols, float* out);

// Can pack_blocks make this format? (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0)
bool can_pack_blocks(Format format);

// The inverse, by ggml's reference rounding (ggml-quants.c, quantize_row_*_ref); cols is a whole number of blocks.
void pack_blocks(Format format, const float* in, int64_t cols, uint8_t* blocks);

}  // namespace gemma4
