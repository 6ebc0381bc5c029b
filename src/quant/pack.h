// unpack_row: codes to floats, the definition of every Format. ref computes with it; every faster kernel is tested
// against it.
#pragma once

#include "quant/matrix.h"

namespace gemma4 {

// Writes row `row` of the host matrix `m` to out[0 .. cols-1] in float32. Formulas: quant/format.h, docs/FORMATS.md.
void unpack_row(const Matrix& m, int64_t row, float* out);

}  // namespace gemma4
