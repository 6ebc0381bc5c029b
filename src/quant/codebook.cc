#include "quant/codebook.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "base/bf16.h"
#include "quant/codebook_grids.h"

namespace gemma4 {
namespace {

constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// What the 2 or 3 bits of a table's row stand for.
constexpr int8_t kIq2Magnitudes[4] = {8, 25, 43, 0}, kIq3XxsMagnitudes[8] = {4, 12, 20, 28, 36, 44, 52, 62},
                 kIq3SMagnitudes[8] = {1, 3, 5, 7, 9, 11, 13, 15};

uint16_t u16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, 2);
  return value;
}

uint32_t u32(const uint8_t* p) {
  uint32_t value;
  std::memcpy(&value, p, 4);
  return value;
}

float f16(const uint8_t* p) { return f16_to_float(u16(p)); }

// Seven sign bits; the eighth makes their number even.
uint8_t even_signs(uint32_t seven) {
  return static_cast<uint8_t>(seven | static_cast<uint32_t>(std::popcount(seven) & 1) << 7);
}

// `count` values of a table's row, negative where `signs` has a bit.
void put_row(uint16_t row, int bits, const int8_t* magnitudes, uint8_t signs, int count, int8_t* out) {
  for (int i = 0; i < count; ++i) {
    const int8_t value = magnitudes[row >> bits * i & ((1 << bits) - 1)];
    out[i] = signs >> i & 1 ? static_cast<int8_t>(-value) : value;
  }
}

// 16 bytes of low nibbles (values 0 .. n - 1) and high nibbles (values n .. 2n - 1).
void put_nibbles(const uint8_t* q, int n, const int8_t* values, int8_t* out) {
  for (int i = 0; i < n; ++i) {
    out[i] = values[q[i] & 15];
    out[i + n] = values[q[i] >> 4];
  }
}

// d; for each 32 values: 4 indices of 8 bits, then 4 x 7 signs and a scale of 4 bits.
void iq2_xxs(const uint8_t* b, int8_t* codes, float* scales) {
  const float d = f16(b);
  for (int group = 0; group < 8; ++group) {
    const uint8_t* q = b + 2 + 8 * group;
    const uint32_t signs = u32(q + 4);
    scales[group] = d * (0.5f + static_cast<float>(signs >> 28)) * 0.25f;
    for (int i = 0; i < 4; ++i) {
      put_row(kIq2XxsGrid[q[i]], 2, kIq2Magnitudes, even_signs(signs >> 7 * i & 127), 8, codes + 32 * group + 8 * i);
    }
  }
}

// d; 32 times an index of 9 bits with 7 signs; 16 scales of 4 bits.
void iq2_xs(const uint8_t* b, int8_t* codes, float* scales) {
  const float d = f16(b);
  for (int group = 0; group < 16; ++group) {
    const int scale = b[66 + group / 2] >> group % 2 * 4 & 15;
    scales[group] = d * (0.5f + static_cast<float>(scale)) * 0.25f;
    for (int i = 0; i < 2; ++i) {
      const uint32_t q = u16(b + 2 + 2 * (2 * group + i));
      put_row(kIq2XsGrid[q & 511], 2, kIq2Magnitudes, even_signs(q >> 9), 8, codes + 16 * group + 8 * i);
    }
  }
}

// d; 32 low bytes of indices; 32 bytes of signs; 8 bytes of the indices' 2 high bits; 16 scales of 4 bits.
void iq2_s(const uint8_t* b, int8_t* codes, float* scales) {
  const float d = f16(b);
  for (int i = 0; i < 32; ++i) {
    const int index = b[2 + i] | (b[66 + i / 4] >> i % 4 * 2 & 3) << 8;
    put_row(kIq2SGrid[index], 2, kIq2Magnitudes, b[34 + i], 8, codes + 8 * i);
  }
  for (int group = 0; group < 16; ++group) {
    const int scale = b[74 + group / 2] >> group % 2 * 4 & 15;
    scales[group] = d * (0.5f + static_cast<float>(scale)) * 0.25f;
  }
}

// d; 64 indices of 8 bits, each of 4 values; for each 32 values 4 x 7 signs and a scale of 4 bits.
void iq3_xxs(const uint8_t* b, int8_t* codes, float* scales) {
  const float d = f16(b);
  for (int group = 0; group < 8; ++group) {
    const uint32_t signs = u32(b + 66 + 4 * group);
    scales[group] = d * (0.5f + static_cast<float>(signs >> 28)) * 0.5f;
    for (int i = 0; i < 8; ++i) {
      const auto four = static_cast<uint8_t>(even_signs(signs >> 7 * (i / 2) & 127) >> i % 2 * 4);
      put_row(kIq3XxsGrid[b[2 + 8 * group + i]], 3, kIq3XxsMagnitudes, four, 4, codes + 32 * group + 4 * i);
    }
  }
}

// d; 64 low bytes of indices; 8 bytes of their ninth bits; 32 bytes of signs; 8 scales of 4 bits.
void iq3_s(const uint8_t* b, int8_t* codes, float* scales) {
  const float d = f16(b);
  for (int i = 0; i < 64; ++i) {
    const int index = b[2 + i] | (b[66 + i / 8] >> i % 8 & 1) << 8;
    const auto four = static_cast<uint8_t>(b[74 + i / 2] >> i % 2 * 4);
    put_row(kIq3SGrid[index], 3, kIq3SMagnitudes, four, 4, codes + 4 * i);
  }
  for (int group = 0; group < 8; ++group) {
    scales[group] = d * static_cast<float>(1 + 2 * (b[106 + group / 2] >> group % 2 * 4 & 15));
  }
}

// Values -1, 0 and 1, all moved by an eighth up or down: in eighths they are whole.
void put_iq1(int index, bool down, int8_t* out) {
  for (int i = 0; i < 8; ++i) {
    const int value = (kIq1Grid[index] >> 2 * i & 3) - 1;
    out[i] = static_cast<int8_t>(8 * value + (down ? -1 : 1));
  }
}

// d; 32 low bytes of indices; for each 32 values 4 x 3 high bits, a scale of 3 bits and the direction.
void iq1_s(const uint8_t* b, int8_t* codes, float* scales) {
  const float d = f16(b);
  for (int group = 0; group < 8; ++group) {
    const int high = u16(b + 34 + 2 * group);
    scales[group] = d * static_cast<float>(2 * (high >> 12 & 7) + 1) / 8;
    for (int i = 0; i < 4; ++i) {
      const int index = b[2 + 4 * group + i] | (high >> 3 * i & 7) << 8;
      put_iq1(index, high >> 15 != 0, codes + 32 * group + 8 * i);
    }
  }
}

// 32 low bytes of indices; 16 bytes of twice 3 high bits and a direction; 16 scales of 3 bits in 4 words, whose highest
// 4 bits together are d.
void iq1_m(const uint8_t* b, int8_t* codes, float* scales) {
  uint16_t bits = 0;
  for (int i = 0; i < 4; ++i) bits = static_cast<uint16_t>(bits | u16(b + 48 + 2 * i) >> 12 << 4 * i);
  const float d = f16_to_float(bits);
  for (int group = 0; group < 16; ++group) {
    scales[group] = d * static_cast<float>(2 * (u16(b + 48 + group / 4 * 2) >> 3 * (group % 4) & 7) + 1) / 8;
    for (int i = 0; i < 2; ++i) {
      const int high = b[32 + group] >> 4 * i;
      put_iq1(b[2 * group + i] | (high & 7) << 8, high & 8, codes + 16 * group + 8 * i);
    }
  }
}

void iq4_nl(const uint8_t* b, int8_t* codes, float* scales) {
  *scales = f16(b);
  put_nibbles(b + 2, 16, kIq4Values, codes);
}

// d; 8 scales of 6 bits less 32: a word of their high bits, 4 bytes of low ones.
void iq4_xs(const uint8_t* b, int8_t* codes, float* scales) {
  const float d = f16(b);
  const int high = u16(b + 2);
  for (int group = 0; group < 8; ++group) {
    const int scale = (b[4 + group / 2] >> group % 2 * 4 & 15) | (high >> 2 * group & 3) << 4;
    scales[group] = d * static_cast<float>(scale - 32);
    put_nibbles(b + 8 + 16 * group, 16, kIq4Values, codes + 32 * group);
  }
}

// Digit `i` of a byte that holds up to five, base 3, as a fraction of 256. Less 1: -1, 0 or 1.
int8_t ternary(uint8_t q, int i) {
  constexpr uint8_t kPowers[5] = {1, 3, 9, 27, 81};
  const auto moved = static_cast<uint8_t>(q * kPowers[i]);
  return static_cast<int8_t>((moved * 3 >> 8) - 1);
}

// 32 bytes of 5 values that lie 32 apart, 16 of 5 that lie 16 apart, 4 of 4 that lie 4 apart; d.
void tq1_0(const uint8_t* b, int8_t* codes, float* scales) {
  for (int i = 0; i < 160; ++i) codes[i] = ternary(b[i % 32], i / 32);
  for (int i = 0; i < 80; ++i) codes[160 + i] = ternary(b[32 + i % 16], i / 16);
  for (int i = 0; i < 16; ++i) codes[240 + i] = ternary(b[48 + i % 4], i / 4);
  for (int group = 0; group < 8; ++group) scales[group] = f16(b + 52);
}

// Twice 32 bytes of 4 values that lie 32 apart; d.
void tq2_0(const uint8_t* b, int8_t* codes, float* scales) {
  for (int i = 0; i < 256; ++i) {
    codes[i] = static_cast<int8_t>((b[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) - 1);
  }
  for (int group = 0; group < 8; ++group) scales[group] = f16(b + 64);
}

// A power of two as a byte with the bias 127, halved.
void mxfp4(const uint8_t* b, int8_t* codes, float* scales) {
  *scales = std::ldexp(1.f, b[0] - 128);
  put_nibbles(b + 1, 16, kE2m1Values, codes);
}

// Four scales in E4M3 without a sign, halved; 0x7f (no number) counts as 0.
void nvfp4(const uint8_t* b, int8_t* codes, float* scales) {
  for (int group = 0; group < 4; ++group) {
    scales[group] = b[group] == 0x7f ? 0 : e4m3_magnitude(b[group]) / 2;
    put_nibbles(b + 4 + 8 * group, 8, kE2m1Values, codes + 16 * group);
  }
}

constexpr CodebookType kTypes[] = {
    {"IQ2_XXS", 16, 256, 66, 32, iq2_xxs}, {"IQ2_XS", 17, 256, 74, 16, iq2_xs},  {"IQ3_XXS", 18, 256, 98, 32, iq3_xxs},
    {"IQ1_S", 19, 256, 50, 32, iq1_s},     {"IQ4_NL", 20, 32, 18, 32, iq4_nl},   {"IQ3_S", 21, 256, 110, 32, iq3_s},
    {"IQ2_S", 22, 256, 82, 16, iq2_s},     {"IQ4_XS", 23, 256, 136, 32, iq4_xs}, {"IQ1_M", 29, 256, 56, 16, iq1_m},
    {"TQ1_0", 34, 256, 54, 32, tq1_0},     {"TQ2_0", 35, 256, 66, 32, tq2_0},    {"MXFP4", 39, 32, 17, 32, mxfp4},
    {"NVFP4", 40, 64, 36, 16, nvfp4},
};

}  // namespace

float e4m3_magnitude(uint8_t bits) {
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  return exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                       : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
}

std::span<const CodebookType> codebook_types() { return kTypes; }

const CodebookType* codebook_of_ggml_type(uint32_t number) {
  for (const CodebookType& type : kTypes) {
    if (type.number == number) return &type;
  }
  return nullptr;
}

}  // namespace gemma4
