#include "quant/blocks.h"

#include <cstring>

#include "base/bf16.h"
#include "base/check.h"

// Layouts: ggml's ggml-common.h (block_q4_0 ...), gguf's quants.py. 16-bit fields are float16, little-endian; values
// of a 32-block lie low nibbles first, those of a 256-block in the interleaving each function shows.

namespace gemma4 {
namespace {

float half_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return f16_to_float(bits);
}

// 32 values, w = (q - 8) * d
void q4_0(const uint8_t* b, float* out) {
  const float d = half_at(b);
  const uint8_t* q = b + 2;
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>((q[i] & 15) - 8) * d;
    out[i + 16] = static_cast<float>((q[i] >> 4) - 8) * d;
  }
}

// w = q * d + m
void q4_1(const uint8_t* b, float* out) {
  const float d = half_at(b), m = half_at(b + 2);
  const uint8_t* q = b + 4;
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>(q[i] & 15) * d + m;
    out[i + 16] = static_cast<float>(q[i] >> 4) * d + m;
  }
}

uint32_t word_at(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
  return word;
}

// As q4_0 with a fifth bit of value i in bit i of a word; w = (q - 16) * d
void q5_0(const uint8_t* b, float* out) {
  const float d = half_at(b);
  const uint32_t high = word_at(b + 2);
  const uint8_t* q = b + 6;
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>(static_cast<int>((q[i] & 15) | (high >> i & 1) << 4) - 16) * d;
    out[i + 16] = static_cast<float>(static_cast<int>((q[i] >> 4) | (high >> (i + 16) & 1) << 4) - 16) * d;
  }
}

void q5_1(const uint8_t* b, float* out) {
  const float d = half_at(b), m = half_at(b + 2);
  const uint32_t high = word_at(b + 4);
  const uint8_t* q = b + 8;
  for (int i = 0; i < 16; ++i) {
    out[i] = static_cast<float>((q[i] & 15) | (high >> i & 1) << 4) * d + m;
    out[i + 16] = static_cast<float>((q[i] >> 4) | (high >> (i + 16) & 1) << 4) * d + m;
  }
}

void q8_0(const uint8_t* b, float* out) {
  const float d = half_at(b);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(b[2 + i])) * d;
}

// 16 scales (low nibble) and minima (high nibble) of 16 values each, 64 bytes of 2-bit codes, d, dmin:
// w = d * scale * q - dmin * minimum
void q2_K(const uint8_t* b, float* out) {
  const float d = half_at(b + 80), dmin = half_at(b + 82);
  for (int sub = 0; sub < 16; ++sub) {  // sub-blocks of 16 values
    const int half = sub / 8, shift = sub % 8 / 2 * 2, side = sub % 2;
    const uint8_t* q = b + 16 + 32 * half + 16 * side;
    const float scale = d * static_cast<float>(b[sub] & 15), minimum = dmin * static_cast<float>(b[sub] >> 4);
    for (int i = 0; i < 16; ++i) out[16 * sub + i] = scale * static_cast<float>(q[i] >> shift & 3) - minimum;
  }
}

// 32 bytes of high bits, 64 of 2-bit codes, 12 of 16 six-bit scales, d: w = d * (scale - 32) * (q - 4), where the high
// bit stands for 4.
void q3_K(const uint8_t* b, float* out) {
  const uint8_t* packed = b + 96;
  const float d = half_at(b + 108);
  for (int sub = 0; sub < 16; ++sub) {
    const int low = sub < 8 ? packed[sub] & 15 : packed[sub - 8] >> 4;
    const int high = packed[8 + sub % 4] >> (sub / 4 * 2) & 3;
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    const int half = sub / 8, shift = sub % 8 / 2 * 2, side = sub % 2, bit = 4 * half + sub % 8 / 2;
    const uint8_t* q = b + 32 + 32 * half + 16 * side;
    const uint8_t* mask = b + 16 * side;
    for (int i = 0; i < 16; ++i) {
      const int code = (q[i] >> shift & 3) - (mask[i] >> bit & 1 ? 0 : 4);
      out[16 * sub + i] = scale * static_cast<float>(code);
    }
  }
}

// Scale and minimum of sub-block j of 8, six bits each, in 12 bytes.
void scale_and_minimum(const uint8_t* s, int j, float* scale, float* minimum) {
  if (j < 4) {
    *scale = static_cast<float>(s[j] & 63);
    *minimum = static_cast<float>(s[j + 4] & 63);
  } else {
    *scale = static_cast<float>((s[j + 4] & 15) | s[j - 4] >> 6 << 4);
    *minimum = static_cast<float>(s[j + 4] >> 4 | s[j] >> 6 << 4);
  }
}

// d, dmin, 12 bytes of scales, 128 of codes; 8 sub-blocks of 32: w = d * scale * q - dmin * minimum
void q4_K(const uint8_t* b, float* out) {
  const float d = half_at(b), dmin = half_at(b + 2);
  for (int j = 0; j < 8; ++j) {
    float scale, minimum;
    scale_and_minimum(b + 4, j, &scale, &minimum);
    scale *= d;
    minimum *= dmin;
    const uint8_t* q = b + 16 + 32 * (j / 2);
    const int shift = j % 2 * 4;
    for (int i = 0; i < 32; ++i) out[32 * j + i] = scale * static_cast<float>(q[i] >> shift & 15) - minimum;
  }
}

// As q4_K with 32 bytes of fifth bits: bit j of byte i belongs to value i of sub-block j.
void q5_K(const uint8_t* b, float* out) {
  const float d = half_at(b), dmin = half_at(b + 2);
  const uint8_t* high = b + 16;
  for (int j = 0; j < 8; ++j) {
    float scale, minimum;
    scale_and_minimum(b + 4, j, &scale, &minimum);
    scale *= d;
    minimum *= dmin;
    const uint8_t* q = b + 48 + 32 * (j / 2);
    const int shift = j % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int code = (q[i] >> shift & 15) | (high[i] >> j & 1) << 4;
      out[32 * j + i] = scale * static_cast<float>(code) - minimum;
    }
  }
}

// 128 bytes of low nibbles, 64 of 2-bit high parts, 16 int8 scales of 16 values each, d: w = d * scale * (q - 32)
void q6_K(const uint8_t* b, float* out) {
  const float d = half_at(b + 208);
  for (int sub = 0; sub < 16; ++sub) {
    const int half = sub / 8, row = sub % 8 / 2, side = sub % 2;  // rows of 32 values in a half of 128
    const uint8_t* low = b + 64 * half + 32 * (row % 2) + 16 * side;
    const uint8_t* high = b + 128 + 32 * half + 16 * side;
    const float scale = d * static_cast<float>(static_cast<int8_t>(b[192 + sub]));
    for (int i = 0; i < 16; ++i) {
      const int code = (low[i] >> (row / 2 * 4) & 15) | (high[i] >> (2 * row) & 3) << 4;
      out[16 * sub + i] = scale * static_cast<float>(code - 32);
    }
  }
}

using Unpack = void (*)(const uint8_t*, float*);

Unpack unpack_for(Format format) {
  switch (format) {
    case Format::kQ4_0:
      return q4_0;
    case Format::kQ4_1:
      return q4_1;
    case Format::kQ5_0:
      return q5_0;
    case Format::kQ5_1:
      return q5_1;
    case Format::kQ8_0:
      return q8_0;
    case Format::kQ2_K:
      return q2_K;
    case Format::kQ3_K:
      return q3_K;
    case Format::kQ4_K:
      return q4_K;
    case Format::kQ5_K:
      return q5_K;
    case Format::kQ6_K:
      return q6_K;
    default:
      return nullptr;
  }
}

}  // namespace

void unpack_blocks(Format format, const uint8_t* blocks, int64_t cols, float* out) {
  const Unpack unpack = unpack_for(format);
  CHECK(unpack != nullptr);
  const FormatInfo& facts = info(format);
  CHECK(cols % facts.block_cols == 0);
  for (int64_t i = 0; i < cols; i += facts.block_cols, blocks += facts.block_bytes) unpack(blocks, out + i);
}

}  // namespace gemma4
