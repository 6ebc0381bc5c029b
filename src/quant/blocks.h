// ggml's block formats (Q4_0 ... Q6_K): bytes to floats. Layouts: docs/FORMATS.md.
#pragma once

#include <cstdint>

#include "quant/format.h"

namespace gemma4 {

// `blocks` holds cols / block_cols blocks; writes cols floats.
void unpack_blocks(Format format, const uint8_t* blocks, int64_t cols, float* out);

}  // namespace gemma4
