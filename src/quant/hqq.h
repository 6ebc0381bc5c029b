// HQQ (half-quadratic quantisation): scales and zero points that minimise an L_p norm of the weight's error, as torchao
// 0.17 does it. Both forms stop early by a measure over the whole tensor, so a tensor cannot be quantised piece by
// piece. Memory holds one scale and one zero point for each group; each pass reads the weight again. Formulas:
// docs/QUANTISATION.md. Origin: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "base/threads.h"
#include "quant/quantize.h"

namespace gemma4 {

struct HqqGroups {
  std::vector<float> scale;  // [rows * cols/group]; asymmetric: codes per unit of weight; symmetric: its inverse
  std::vector<float> zero;   // [rows * cols/group], fractional; empty where symmetric
  int iterations = 0;
};

// 4 bits, codes 0..15. `source` must be finite; throws Error, naming `name`, where a weight does not fit float16 and
// the arithmetic is float16.
HqqGroups hqq_asymmetric(const Matrix& source, int group, HqqArithmetic arithmetic, ThreadPool& pool,
                         const std::string& name);

// Only the scale is fitted: codes -8..7 or -128..127.
HqqGroups hqq_symmetric(const Matrix& source, int group, int bits, ThreadPool& pool);

// Codes as stored (symmetric int4: plus 8) of the group `index`.
void hqq_encode(const QuantConfig& config, const HqqGroups& groups, size_t index, const float* values, int64_t count,
                int8_t* out);

// The group's scale (weight per code) as bf16.
uint16_t hqq_stored_scale(const QuantConfig& config, HqqArithmetic arithmetic, const HqqGroups& groups, size_t index);

}  // namespace gemma4
