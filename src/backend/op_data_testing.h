// Random values, random weights in any format, and tensors in and out of a backend, for op tests and benchmarks.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "base/bf16.h"

namespace gemma4 {

using Floats = std::vector<float>;

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float uniform(float low, float high) { return low + (high - low) * static_cast<float>(engine_() >> 8) * 0x1p-24f; }
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  Floats values(int64_t count, float low = -1, float high = 1);

 private:
  std::mt19937 engine_;
};

// Weights in any Format with plausible values, and the memory they lie in. bf16-exact values where the format allows.
struct HostMatrix {
  Matrix matrix;
  std::vector<std::vector<std::byte>> memory;
};

// Values that survive a rounding to bfloat16, so that every backend computes from the same inputs.
inline Floats rounded(Floats values) {
  for (float& v : values) v = round_to_bf16(v);
  return values;
}

inline Floats Random::values(int64_t count, float low, float high) {
  Floats out(static_cast<size_t>(count));
  for (float& v : out) v = uniform(low, high);
  return rounded(std::move(out));
}

inline std::byte* reserve(HostMatrix& m, int64_t bytes) {
  m.memory.emplace_back(static_cast<size_t>(bytes));
  return m.memory.back().data();
}

inline void random_bytes(std::byte* to, int64_t count, Random& random) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<std::byte>(random.below(256));
}

inline Tensor random_bf16(HostMatrix& m, int64_t rows, int64_t cols, float low, float high, Random& random) {
  auto* to = reinterpret_cast<uint16_t*>(reserve(m, rows * cols * 2));
  for (int64_t i = 0; i < rows * cols; ++i) to[i] = float_to_bf16(random.uniform(low, high));
  return Tensor(to, DType::kBF16, {rows, cols});
}

// Random bytes are blocks too, once their half-precision scales are set to something sane. Offsets: docs/FORMATS.md.
inline void random_blocks(HostMatrix& m, Random& random) {
  const Matrix& w = m.matrix;
  const FormatInfo& f = info(w.format);
  auto* to = reserve(m, w.rows * row_bytes(w));
  random_bytes(to, w.rows * row_bytes(w), random);
  std::vector<int> scales = {0};
  if (w.format == Format::kQ4_1 || w.format == Format::kQ5_1 || w.format == Format::kQ4_K || w.format == Format::kQ5_K)
    scales = {0, 2};
  if (w.format == Format::kQ2_K) scales = {80, 82};
  if (w.format == Format::kQ3_K) scales = {108};
  if (w.format == Format::kQ6_K) scales = {208};
  for (int64_t block = 0; block < w.rows * (w.cols / f.block_cols); ++block) {
    for (int offset : scales) {
      const uint16_t half = float_to_f16(random.uniform(0.0005f, 0.002f));
      std::memcpy(to + block * f.block_bytes + offset, &half, 2);
    }
  }
  m.matrix.codes = Tensor(to, DType::kU8, {w.rows, row_bytes(w)});
}

inline HostMatrix random_matrix(Format format, int64_t rows, int64_t cols, int group, Random& random) {
  HostMatrix m;
  Matrix& w = m.matrix;
  w.format = format, w.rows = rows, w.cols = cols, w.group = group;
  switch (format) {
    case Format::kF32: {
      auto* to = reinterpret_cast<float*>(reserve(m, rows * cols * 4));
      for (int64_t i = 0; i < rows * cols; ++i) to[i] = round_to_bf16(random.uniform(-0.1f, 0.1f));
      w.codes = Tensor(to, DType::kF32, {rows, cols});
      break;
    }
    case Format::kBF16:
      w.codes = random_bf16(m, rows, cols, -0.1f, 0.1f, random);
      break;
    case Format::kF16: {
      auto* to = reinterpret_cast<uint16_t*>(reserve(m, rows * cols * 2));
      for (int64_t i = 0; i < rows * cols; ++i) to[i] = float_to_f16(round_to_bf16(random.uniform(-0.1f, 0.1f)));
      w.codes = Tensor(to, DType::kF16, {rows, cols});
      break;
    }
    case Format::kInt4:
      w.codes = Tensor(reserve(m, rows * cols / 2), DType::kU8, {rows, cols / 2});
      random_bytes(static_cast<std::byte*>(w.codes.data), rows * cols / 2, random);
      w.scale = random_bf16(m, cols / group, rows, 0.005f, 0.02f, random);
      w.zero = random_bf16(m, cols / group, rows, 5, 10, random);
      break;
    case Format::kInt8:
      w.codes = Tensor(reserve(m, rows * cols), DType::kI8, {rows, cols});
      random_bytes(static_cast<std::byte*>(w.codes.data), rows * cols, random);
      w.scale = random_bf16(m, rows, cols / group, 0.0003f, 0.001f, random);
      break;
    default:
      random_blocks(m, random);
  }
  return m;
}

inline Tensor put_as(Backend& be, DType type, const Floats& values, std::initializer_list<int64_t> shape) {
  const Tensor t = be.alloc(type, shape);
  CHECK(t.size() == static_cast<int64_t>(values.size()));
  if (type == DType::kF32) {
    be.write(t, values.data());
    return t;
  }
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    bits[i] = type == DType::kBF16 ? float_to_bf16(values[i]) : float_to_f16(values[i]);
  }
  be.write(t, bits.data());
  return t;
}

// Tensors of the backend's activation type, bfloat16 or float32.
inline Tensor put(Backend& be, const Floats& values, std::initializer_list<int64_t> shape) {
  return put_as(be, be.activation_type(), values, shape);
}

inline Tensor put_ints(Backend& be, const std::vector<int32_t>& values, std::initializer_list<int64_t> shape) {
  const Tensor t = be.alloc(DType::kI32, shape);
  be.write(t, values.data());
  return t;
}

// [rows, row size] packed, also of a strided view.
inline Floats get(Backend& be, const Tensor& t) {
  Floats out(static_cast<size_t>(t.size()));
  if (t.dtype == DType::kF32) {
    be.read(out.data(), t);
    return out;
  }
  std::vector<uint16_t> bits(out.size());
  be.read(bits.data(), t);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = t.dtype == DType::kBF16 ? bf16_to_float(bits[i]) : f16_to_float(bits[i]);
  }
  return out;
}

}  // namespace gemma4
