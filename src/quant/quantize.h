// Quantise: one weight matrix in floats -> codes, scales and zero points, exactly as torchao 0.17 computes them for
// ExecuTorch (the arithmetic, operation by operation: docs/QUANTISATION.md). quant/recipe.h decides which weight gets
// which settings.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/threads.h"
#include "quant/matrix.h"

namespace gemma4 {

enum class Method : uint8_t { kMinMax, kHqq };

// How asymmetric HQQ computes: every operation rounded to float16, as PyTorch does on a GPU, or in float32, as on a
// CPU.
enum class HqqArithmetic : uint8_t { kF32, kF16 };

struct QuantConfig {
  int bits = 4;        // 4 or 8
  int64_t group = 32;  // columns that share a scale; 0: a whole row ("per axis")
  bool symmetric = false;
  Method method = Method::kMinMax;

  bool operator==(const QuantConfig&) const = default;
};

// The result, in torchao's layout (quant/format.h).
struct QuantizedWeight {
  Format format = Format::kNone;
  int64_t rows = 0, cols = 0;
  int group = 0;
  std::vector<uint8_t> codes;   // kInt4: [rows, cols/2]; kInt8: int8 [rows, cols]
  std::vector<uint16_t> scale;  // bf16; kInt4: [cols/group, rows]; kInt8: [rows, cols/group]
  std::vector<uint16_t> zero;   // bf16, kInt4: [cols/group, rows]
  std::vector<int8_t> zero8;    // kInt8: [rows, cols/group]
  int hqq_iterations = 0;       // asymmetric HQQ: how many ran before the early stop

  Matrix view();  // points into this object; kInt8 must be symmetric
};

// Throws Error, naming `name`: bits other than 4 and 8, asymmetric 8-bit HQQ, a group that does not divide `cols`.
void check_quantizable(const QuantConfig& config, int64_t cols, const std::string& name);

// `source`: f32, f16 or bf16. The same result for any number of threads. Throws Error for a value that is not finite.
QuantizedWeight quantize(const Matrix& source, const QuantConfig& config, HqqArithmetic hqq, ThreadPool& pool,
                         const std::string& name);

// The vision tower's position table: int8 with one float32 scale a row, by true division.
struct QuantizedTable {
  std::vector<int8_t> codes;  // [rows, cols]
  std::vector<float> scale;   // [rows]
};
QuantizedTable quantize_position_table(const Matrix& source, ThreadPool& pool, const std::string& name);

// Row `row` of an element-typed (f32, f16, bf16) matrix as floats: out[0 .. cols-1].
void load_row(const Matrix& source, int64_t row, float* out);

}  // namespace gemma4
