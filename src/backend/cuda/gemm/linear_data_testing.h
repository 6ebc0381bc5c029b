// Random weights and inputs for cuda_linear_bench, and their memory.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "backend/cuda/gemm/select_kernel.h"
#include "backend/cuda/runtime/error.h"
#include "base/bf16.h"
#include "base/threads.h"
#include "quant/pack.h"

namespace gemma4::cuda {

inline uint64_t random_bits(uint64_t& state) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state;
}

// A host weight with random codes and plausible scales, and its memory.
struct Weight {
  Matrix matrix;
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scale, zero;
  std::vector<float> scale_f32;
};

struct FormatCase {
  const char* name;
  Format format;
  int group;
  bool fractional;
  Layout layout;  // expected
};

constexpr FormatCase kFormatCases[] = {
    {"int4 g32", Format::kInt4, 32, false, Layout::kInt4G32},
    {"int4 g64", Format::kInt4, 64, false, Layout::kInt4G64},
    {"int4 g128", Format::kInt4, 128, false, Layout::kInt4G64},
    {"int4 g32 hqq", Format::kInt4, 32, true, Layout::kInt4G32Frac},
    {"int4 g64 hqq", Format::kInt4, 64, true, Layout::kInt4G64Frac},
    {"int8 g32", Format::kInt8, 32, false, Layout::kInt8G32},
    {"int8 row", Format::kInt8, 0, false, Layout::kInt8G64},
    {"q4_0", Format::kQ4_0, 0, false, Layout::kQ4_0},
    {"q4_K", Format::kQ4_K, 0, false, Layout::kQ4_K},
    {"q6_K", Format::kQ6_K, 0, false, Layout::kQ6_K},
    {"q8_0", Format::kQ8_0, 0, false, Layout::kQ8_0},
    {"bf16", Format::kBF16, 0, false, Layout::kBF16},
};

inline void set_half(uint8_t* at, float value) {
  const uint16_t bits = float_to_f16(value);
  std::memcpy(at, &bits, 2);
}

// Random bytes make random codes; the 16-bit scales inside ggml blocks are then set to small positive numbers.
inline void set_block_scales(Weight& w, uint64_t& state) {
  const FormatInfo& f = info(w.matrix.format);
  const auto small = [&] { return 0.002f + 0.004f * static_cast<float>(random_bits(state) % 1024) / 1024.0f; };
  for (size_t at = 0; at < w.codes.size(); at += f.block_bytes) {
    uint8_t* block = w.codes.data() + at;
    if (w.matrix.format == Format::kQ6_K) {
      set_half(block + 208, small() / 64);
    } else if (w.matrix.format == Format::kQ4_K) {
      set_half(block, small() / 32), set_half(block + 2, small() / 8);
    } else {
      set_half(block, w.matrix.format == Format::kQ8_0 ? small() / 16 : small());
    }
  }
}

inline Weight make_weight(const FormatCase& format_case, int64_t rows, int64_t cols, uint64_t seed) {
  Weight w;
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  Matrix& m = w.matrix;
  m.format = format_case.format, m.rows = rows, m.cols = cols;
  m.group = format_case.format == Format::kInt8 && format_case.group == 0 ? static_cast<int>(cols) : format_case.group;
  const int64_t bytes = row_bytes(m);
  w.codes.resize(rows * bytes + 8);
  for (size_t i = 0; i + 8 <= w.codes.size(); i += 8) {
    const uint64_t bits = random_bits(state);
    std::memcpy(w.codes.data() + i, &bits, 8);
  }
  w.codes.resize(rows * bytes);
  const auto uniform = [&] { return static_cast<float>(random_bits(state) >> 40) / 16777216.0f; };
  if (is_ggml_block(format_case.format)) set_block_scales(w, state);
  if (format_case.format == Format::kBF16) {
    uint16_t* values = reinterpret_cast<uint16_t*>(w.codes.data());
    for (int64_t i = 0; i < rows * cols; ++i) values[i] = float_to_bf16((uniform() - 0.5f) * 0.1f);
  }
  const DType type = format_case.format == Format::kInt8   ? DType::kI8
                     : format_case.format == Format::kBF16 ? DType::kBF16
                                                           : DType::kU8;
  m.codes = Tensor(w.codes.data(), type, {rows, format_case.format == Format::kBF16 ? cols : bytes});
  if (m.group > 0) {
    const int64_t groups = cols / m.group;
    w.scale.resize(rows * groups), w.zero.resize(rows * groups);
    for (uint16_t& s : w.scale) s = float_to_bf16(0.002f + 0.004f * uniform());
    for (uint16_t& z : w.zero) {
      z = float_to_bf16(format_case.fractional ? uniform() * 15 : static_cast<float>(random_bits(state) % 16));
    }
    if (format_case.format == Format::kInt4) {
      m.scale = Tensor(w.scale.data(), DType::kBF16, {groups, rows});
      m.zero = Tensor(w.zero.data(), DType::kBF16, {groups, rows});
    } else {
      for (uint16_t& s : w.scale) s = float_to_bf16(bf16_to_float(s) / 16);
      m.scale = Tensor(w.scale.data(), DType::kBF16, {rows, groups});
    }
  }
  return w;
}

struct DeviceBuffer {
  void* data = nullptr;
  explicit DeviceBuffer(int64_t bytes) { CUDA_CHECK(cudaMalloc(&data, std::max<int64_t>(bytes, 16))); }
  ~DeviceBuffer() { cudaFree(data); }
  DeviceBuffer(const DeviceBuffer&) = delete;
};

struct Inputs {
  std::vector<uint16_t> host;
  DeviceBuffer device;
  Tensor tensor;
  // `wild`: some columns are zero and some a thousand times larger, as activations may be.
  Inputs(int64_t n, int64_t cols, uint64_t seed, bool wild = false) : host(n * cols), device(n * cols * 2) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    for (uint16_t& value : host) value = float_to_bf16(normal(random));
    for (int64_t i = 0; wild && i < n * cols; ++i) {
      if (i % cols < 70) host[i] = 0;
      if (i % 389 == 0) host[i] = float_to_bf16(1000 * bf16_to_float(host[i]));
    }
    CUDA_CHECK(cudaMemcpy(device.data, host.data(), host.size() * 2, cudaMemcpyHostToDevice));
    tensor = Tensor(device.data, DType::kBF16, {n, cols});
  }
};

inline ThreadPool& pool() {
  static ThreadPool threads;
  return threads;
}

}  // namespace gemma4::cuda
