#include "quant/quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/bf16.h"
#include "quant/hqq.h"
#include "quant/rounding.h"

namespace gemma4 {
namespace {

constexpr float kEpsilon = std::numeric_limits<float>::epsilon();  // torchao's floor of a scale: finfo(float32).eps

struct Range {
  float low, high;
};

// Smallest and largest of `values` and 0, as in torchao's affine quantisers.
Range range_with_zero(const float* values, int64_t count) {
  float low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  return {low, high};
}

// A group's settings after rounding to storage.
struct Group {
  uint16_t scale;  // bf16
  float zero;      // whole
  float inverse;   // bf16(1 / scale): torchao multiplies by it in place of dividing
};

Group with_scale(float scale, float zero) {
  const uint16_t stored = float_to_bf16(scale);
  return {stored, zero, round_to_bf16(1.0f / bf16_to_float(stored))};
}

Group choose_group(const QuantConfig& config, const float* values, int64_t count) {
  const auto [low, high] = range_with_zero(values, count);
  const float steps = config.bits == 4 ? 15.0f : 255.0f;
  if (config.symmetric) {
    const float scale = std::max(std::max(-low, high) / (steps / 2), kEpsilon);
    return with_scale(scale, config.bits == 4 ? 8.0f : 0.0f);
  }
  const float scale = std::max((high - low) / steps, kEpsilon);
  const float code_min = config.bits == 4 ? 0.0f : -128.0f;
  // The zero point comes from the scale before it is rounded to bf16.
  const float zero = code_min - round_half_even(low / scale);
  return with_scale(scale, std::clamp(zero, code_min, code_min + steps));
}

void encode(const Group& group, float code_min, float code_max, const float* values, int64_t count, int8_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float code = round_half_even(values[i] * group.inverse) + group.zero;
    out[i] = to_code(code, code_min, code_max);
  }
}

// Two codes 0..15 to a byte, the even column in the low nibble.
void pack_nibbles(const int8_t* codes, int64_t cols, uint8_t* out) {
  for (int64_t i = 0; i < cols / 2; ++i) out[i] = static_cast<uint8_t>(codes[2 * i] | (codes[2 * i + 1] << 4));
}

void store_row(QuantizedWeight& result, int64_t row, const int8_t* codes) {
  if (result.format == Format::kInt4) {
    pack_nibbles(codes, result.cols, result.codes.data() + row * (result.cols / 2));
  } else {
    std::copy_n(codes, result.cols, reinterpret_cast<int8_t*>(result.codes.data()) + row * result.cols);
  }
}

// The index of a group's scale and zero point: transposed for int4.
int64_t group_index(const QuantizedWeight& result, int64_t row, int64_t g) {
  return result.format == Format::kInt4 ? g * result.rows + row : row * (result.cols / result.group) + g;
}

void check_finite(const float* values, int64_t count, const std::string& name) {
  float sum = 0;  // 0 for numbers up to 3e30, past which ranges and products overflow; else NaN
  for (int64_t i = 0; i < count; ++i) sum += (values[i] * 1e8f) * 0.0f;
  if (!(sum == 0)) throw Error("tensor " + name + " holds a value that is not a finite number below 3e30");
}

void min_max(const Matrix& source, const QuantConfig& config, QuantizedWeight& result, ThreadPool& pool,
             const std::string& name) {
  const float code_min = config.bits == 4 ? 0.0f : -128.0f;
  const float code_max = config.bits == 4 ? 15.0f : 127.0f;
  pool.parallel_for(source.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(source.cols));
    std::vector<int8_t> codes(static_cast<size_t>(source.cols));
    for (int64_t row = begin; row < end; ++row) {
      load_row(source, row, values.data());
      check_finite(values.data(), source.cols, name);
      for (int64_t g = 0; g < source.cols / result.group; ++g) {
        const int64_t first = g * result.group;
        const Group group = choose_group(config, values.data() + first, result.group);
        encode(group, code_min, code_max, values.data() + first, result.group, codes.data() + first);
        const auto at = static_cast<size_t>(group_index(result, row, g));
        result.scale[at] = group.scale;
        if (config.bits == 4) {
          result.zero[at] = float_to_bf16(group.zero);
        } else {
          result.zero8[at] = static_cast<int8_t>(group.zero);
        }
      }
      store_row(result, row, codes.data());
    }
  });
}

void hqq(const Matrix& source, const QuantConfig& config, HqqArithmetic arithmetic, QuantizedWeight& result,
         ThreadPool& pool, const std::string& name) {
  const int64_t groups = source.cols / result.group;
  pool.parallel_for(source.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(source.cols));
    for (int64_t row = begin; row < end; ++row) {
      load_row(source, row, values.data());
      check_finite(values.data(), source.cols, name);
    }
  });
  const HqqGroups chosen = config.symmetric ? hqq_symmetric(source, result.group, config.bits, pool)
                                            : hqq_asymmetric(source, result.group, arithmetic, pool, name);
  result.hqq_iterations = chosen.iterations;
  pool.parallel_for(source.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(source.cols));
    std::vector<int8_t> codes(static_cast<size_t>(source.cols));
    for (int64_t row = begin; row < end; ++row) {
      load_row(source, row, values.data());
      for (int64_t g = 0; g < groups; ++g) {
        const auto from = static_cast<size_t>(row * groups + g);
        const auto to = static_cast<size_t>(group_index(result, row, g));
        hqq_encode(config, chosen, from, values.data() + g * result.group, result.group,
                   codes.data() + g * result.group);
        result.scale[to] = hqq_stored_scale(config, arithmetic, chosen, from);
        if (config.bits == 4) result.zero[to] = config.symmetric ? float_to_bf16(8) : float_to_bf16(chosen.zero[from]);
      }
      store_row(result, row, codes.data());
    }
  });
}

template <typename T, typename Convert>
void convert_row(const Tensor& t, int64_t row, int64_t cols, float* out, Convert convert) {
  const T* from = t.row<const T>(row);
  for (int64_t i = 0; i < cols; ++i) out[i] = convert(from[i]);
}

}  // namespace

Matrix QuantizedWeight::view() {
  CHECK(std::all_of(zero8.begin(), zero8.end(), [](int8_t z) { return z == 0; }));
  Matrix m;
  m.format = format;
  m.rows = rows;
  m.cols = cols;
  m.group = group;
  const int64_t groups = cols / group;
  if (format == Format::kInt4) {
    m.codes = Tensor(codes.data(), DType::kU8, {rows, cols / 2});
    m.scale = Tensor(scale.data(), DType::kBF16, {groups, rows});
    m.zero = Tensor(zero.data(), DType::kBF16, {groups, rows});
  } else {
    m.codes = Tensor(codes.data(), DType::kI8, {rows, cols});
    m.scale = Tensor(scale.data(), DType::kBF16, {rows, groups});
  }
  return m;
}

void check_quantizable(const QuantConfig& config, int64_t cols, const std::string& name) {
  if (config.bits != 4 && config.bits != 8) {
    throw Error("tensor " + name + ": Unsupported bits=" + std::to_string(config.bits) + "; 4 and 8 are supported");
  }
  if (config.bits == 8 && config.method == Method::kHqq && !config.symmetric) {
    throw Error("tensor " + name + ": 8-bit HQQ is symmetric only; use min_max for asymmetric 8-bit");
  }
  const int64_t group = config.group == 0 ? cols : config.group;
  if (group <= 0 || group > INT32_MAX || cols % group != 0) {
    throw Error("tensor " + name + ": its " + std::to_string(cols) + " columns are not a multiple of the group size " +
                std::to_string(group));
  }
  if (config.bits == 4 && cols % 2 != 0) {
    throw Error("tensor " + name + ": an odd number of columns (" + std::to_string(cols) + ") cannot be int4");
  }
}

QuantizedWeight quantize(const Matrix& source, const QuantConfig& config, HqqArithmetic arithmetic, ThreadPool& pool,
                         const std::string& name) {
  check_quantizable(config, source.cols, name);
  QuantizedWeight result;
  result.format = config.bits == 4 ? Format::kInt4 : Format::kInt8;
  result.rows = source.rows;
  result.cols = source.cols;
  result.group = static_cast<int>(config.group == 0 ? source.cols : config.group);
  const auto groups = static_cast<size_t>(source.rows * (source.cols / result.group));
  result.codes.resize(static_cast<size_t>(source.rows * (config.bits == 4 ? source.cols / 2 : source.cols)));
  result.scale.resize(groups);
  if (config.bits == 4) {
    result.zero.resize(groups);
  } else {
    result.zero8.resize(groups);
  }
  if (config.method == Method::kMinMax) {
    min_max(source, config, result, pool, name);
  } else {
    hqq(source, config, arithmetic, result, pool, name);
  }
  return result;
}

QuantizedTable quantize_position_table(const Matrix& source, ThreadPool& pool, const std::string& name) {
  QuantizedTable table;
  table.codes.resize(static_cast<size_t>(source.rows * source.cols));
  table.scale.resize(static_cast<size_t>(source.rows));
  pool.parallel_for(source.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(source.cols));
    for (int64_t row = begin; row < end; ++row) {
      load_row(source, row, values.data());
      check_finite(values.data(), source.cols, name);
      const auto [low, high] = range_with_zero(values.data(), source.cols);
      const float scale = std::max(std::max(-low, high), 1e-8f) / 127.0f;
      table.scale[static_cast<size_t>(row)] = scale;
      int8_t* out = table.codes.data() + row * source.cols;
      for (int64_t i = 0; i < source.cols; ++i) {
        const float code = round_half_even(values[static_cast<size_t>(i)] / scale);
        out[i] = to_code(code, -128, 127);
      }
    }
  });
  return table;
}

void load_row(const Matrix& source, int64_t row, float* out) {
  switch (source.format) {
    case Format::kF32:
      return convert_row<float>(source.codes, row, source.cols, out, [](float x) { return x; });
    case Format::kF16:
      return convert_row<uint16_t>(source.codes, row, source.cols, out, f16_to_float);
    case Format::kBF16:
      return convert_row<uint16_t>(source.codes, row, source.cols, out, bf16_to_float);
    default:
      CHECK(false);
  }
}

}  // namespace gemma4
