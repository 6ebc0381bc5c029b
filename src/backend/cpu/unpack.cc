// Unpacking: elements of a panel as float32, for embed() and for tests. Kernels decode panels themselves.
#include "backend/cpu/packed.h"

#include <cstring>

#include "base/bf16.h"
#include "quant/blocks.h"

namespace gemma4::cpu {
namespace {

float scale_value(DType type, const void* values, int64_t i) {
  if (type == DType::kF32) return static_cast<const float*>(values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  return type == DType::kBF16 ? bf16_to_float(bits) : f16_to_float(bits);
}

uint32_t bits(const uint8_t* words, int64_t word, int64_t lane, int64_t shift, uint32_t mask) {
  uint32_t value;
  std::memcpy(&value, words + (word * kPanel + lane) * 4, 4);
  return value >> shift & mask;
}

float int4_element(const Packed& p, const uint8_t* group, int64_t k, int64_t lane) {
  const float code = static_cast<float>(bits(group + p.header_bytes, k / 8, lane, k % 8 * 4, 15));
  return (code - scale_value(p.scale_type, group, kPanel + lane)) * scale_value(p.scale_type, group, lane);
}

float q4_k_element(const Packed& p, const uint8_t* group, int64_t k, int64_t lane) {
  const uint8_t* sub = group + p.header_bytes + k / 32 * kSub4K;
  const float scale = scale_value(DType::kF16, group, lane) * static_cast<float>(sub[lane]);
  const float least = scale_value(DType::kF16, group, kPanel + lane) * static_cast<float>(sub[kPanel + lane]);
  return scale * static_cast<float>(bits(sub + 2 * kPanel, k % 32 / 8, lane, k % 8 * 4, 15)) - least;
}

float q6_k_element(const Packed& p, const uint8_t* group, int64_t k, int64_t lane) {
  const uint8_t* sub = group + p.header_bytes + k / 16 * kSub6K;
  const float scale = scale_value(DType::kF16, group, lane) * static_cast<float>(static_cast<int8_t>(sub[lane]));
  const uint32_t low = bits(sub + kPanel, k % 16 / 8, lane, k % 8 * 4, 15);
  const uint32_t high = bits(sub + 9 * kPanel, 0, lane, k % 16 * 2, 3);
  return scale * static_cast<float>(static_cast<int>(low | high << 4) - 32);
}

float element(const Packed& p, const uint8_t* panel, int64_t col, int64_t lane) {
  const uint8_t* group = panel + col / p.group * p.group_bytes;
  const int64_t k = col % p.group;
  switch (p.layout) {
    case Layout::kF32:
      return reinterpret_cast<const float*>(panel)[col * kPanel + lane];
    case Layout::kF16:
      return f16_to_float(reinterpret_cast<const uint16_t*>(panel)[col * kPanel + lane]);
    case Layout::kBF16:
      return bf16_to_float(reinterpret_cast<const uint16_t*>(panel)[(col / 2 * kPanel + lane) * 2 + col % 2]);
    case Layout::kInt8:
      return static_cast<float>(static_cast<int8_t>(group[p.header_bytes + k * kPanel + lane])) *
             scale_value(p.scale_type, group, lane);
    case Layout::kQ4K:
      return q4_k_element(p, group, k, lane);
    case Layout::kQ6K:
      return q6_k_element(p, group, k, lane);
    default:
      return int4_element(p, group, k, lane);
  }
}

}  // namespace

void unpack_packed_row(const Packed& p, int64_t row, float* out) {
  CHECK(row >= 0 && row < p.rows);
  const uint8_t* panel = p.panel(row / kPanel);
  const int64_t lane = row % kPanel;
  if (p.layout == Layout::kBlocks) {
    return unpack_blocks(p.format, panel + lane * (p.panel_bytes / kPanel), p.cols, out);
  }
  for (int64_t col = 0; col < p.cols; ++col) out[col] = element(p, panel, col, lane);
}

}  // namespace gemma4::cpu
