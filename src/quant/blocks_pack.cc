#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/bf16.h"
#include "base/check.h"
#include "quant/blocks.h"

namespace gemma4 {
namespace {

constexpr int kValues = 32;  // in a block of every format here

uint8_t* put_half(uint8_t* to, float value) {
  const uint16_t bits = float_to_f16(value);
  std::memcpy(to, &bits, 2);
  return to + 2;
}

// Codes of a block whose scale is (value of largest magnitude) / -half, so that this value is exact: codes 0 .. 2 half
// - 1 stand for (code - half).
float signed_codes(const float* in, int half, int* codes) {
  const float* largest = std::max_element(in, in + kValues, [](float a, float b) { return std::abs(a) < std::abs(b); });
  const float d = *largest / static_cast<float>(-half);
  const float inverse = d != 0 ? 1 / d : 0;
  for (int i = 0; i < kValues; ++i)
    codes[i] = std::clamp(static_cast<int>(in[i] * inverse + (static_cast<float>(half) + 0.5f)), 0, 2 * half - 1);
  return d;
}

// Codes 0 .. top for the range from the block's least to its largest value.
float ranged_codes(const float* in, int top, int* codes, float* least) {
  const auto [low, high] = std::minmax_element(in, in + kValues);
  const float d = (*high - *low) / static_cast<float>(top);
  const float inverse = d != 0 ? 1 / d : 0;
  for (int i = 0; i < kValues; ++i) codes[i] = std::clamp(static_cast<int>((in[i] - *low) * inverse + 0.5f), 0, top);
  *least = *low;
  return d;
}

// Fifth bits as a word, then low nibbles: value i and value i + 16 share a byte.
void put_codes(const int* codes, bool fifth_bit, uint8_t* to) {
  if (fifth_bit) {
    uint32_t high = 0;
    for (int i = 0; i < kValues; ++i) high |= static_cast<uint32_t>(codes[i] >> 4) << i;
    std::memcpy(to, &high, 4);
    to += 4;
  }
  for (int i = 0; i < kValues / 2; ++i) {
    to[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[i + kValues / 2] & 15) << 4);
  }
}

void pack_q8_0(const float* in, uint8_t* to) {
  float largest = 0;
  for (int i = 0; i < kValues; ++i) largest = std::max(largest, std::abs(in[i]));
  const float d = largest / 127;
  const float inverse = d != 0 ? 1 / d : 0;
  to = put_half(to, d);
  for (int i = 0; i < kValues; ++i) to[i] = static_cast<uint8_t>(static_cast<int8_t>(std::round(in[i] * inverse)));
}

void pack_block(Format format, const float* in, uint8_t* to) {
  int codes[kValues];
  float least = 0;
  switch (format) {
    case Format::kQ4_0:
    case Format::kQ5_0: {
      const bool five = format == Format::kQ5_0;
      to = put_half(to, signed_codes(in, five ? 16 : 8, codes));
      return put_codes(codes, five, to);
    }
    case Format::kQ4_1:
    case Format::kQ5_1: {
      const bool five = format == Format::kQ5_1;
      to = put_half(to, ranged_codes(in, five ? 31 : 15, codes, &least));
      return put_codes(codes, five, put_half(to, least));
    }
    default:
      return pack_q8_0(in, to);
  }
}

}  // namespace

bool can_pack_blocks(Format format) {
  return format == Format::kQ4_0 || format == Format::kQ4_1 || format == Format::kQ5_0 || format == Format::kQ5_1 ||
         format == Format::kQ8_0;
}

void pack_blocks(Format format, const float* in, int64_t cols, uint8_t* blocks) {
  CHECK(can_pack_blocks(format) && cols % kValues == 0);
  for (int64_t i = 0; i < cols; i += kValues, blocks += info(format).block_bytes) pack_block(format, in + i, blocks);
}

}  // namespace gemma4
