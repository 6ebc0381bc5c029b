#include "checkpoint/gptq.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "base/bf16.h"
#include "base/check.h"
#include "base/json_text.h"
#include "base/threads.h"

// A code q of group g and row n stands for scale[g][n] * (q - zero[g][n]), in float32 here; GPTQModel and AutoAWQ round
// that product to the scales' type.
//
//   GPTQ  qweight [K bits / 32, N]: a word holds codes of consecutive columns; qzeros [groups, N bits / 32]: of
//         consecutive rows; both the first in the lowest bits
//   AWQ   qweight [K, N / 8], qzeros [groups, N / 8]: of eight consecutive rows, in the order of kAwqNibble
//   both  scales [groups, N]; g_idx [K], the group of each column
//
// A word of GPTQ is a word of kInt4, so transposing words is all that its codes need.

namespace gemma4 {
namespace {

using Zeros = GptqSettings::Zeros;

constexpr int kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // where row n % 8 lies in a word
constexpr int64_t kRowBlock = 128;                       // rows that are read together: whole cache lines of words

uint32_t word_at(const PackedTensor& tensor, int64_t index) {  // nothing in a safetensors file is aligned
  uint32_t word;
  std::memcpy(&word, tensor.bytes.data() + 4 * index, 4);
  return word;
}

uint16_t half_at(const PackedTensor& tensor, int64_t index) {
  uint16_t bits;
  std::memcpy(&bits, tensor.bytes.data() + 2 * index, 2);
  return bits;
}

struct Source {
  std::string whose;
  const PackedTensor *codes, *scales, *zeros, *order;  // order: g_idx, or null
  std::vector<int32_t> group_of;                       // [cols]
  int64_t rows, cols, groups;
  int64_t block;  // columns of the widest blocks that have one group each
  int bits;
  bool awq;
  Zeros zeros_hold;

  int per_word() const { return 32 / bits; }
  int code(int64_t col, int64_t row) const {
    if (awq) return static_cast<int>(word_at(*codes, col * (rows / 8) + row / 8) >> (4 * kAwqNibble[row % 8]) & 15);
    const uint32_t word = word_at(*codes, col / per_word() * rows + row);
    return static_cast<int>(word >> (bits * (col % per_word())) & ((1u << bits) - 1));
  }
  int zero(int64_t group, int64_t row) const {
    if (awq) return static_cast<int>(word_at(*zeros, group * (rows / 8) + row / 8) >> (4 * kAwqNibble[row % 8]) & 15);
    uint32_t word = word_at(*zeros, group * zeros->entry.shape[1] + row / per_word());
    if (zeros_hold == Zeros::kWordsMinusOne) word += bits == 4 ? 0x11111111u : 0x01010101u;
    const int stored = static_cast<int>(word >> (bits * (row % per_word())) & ((1u << bits) - 1));
    return stored + (zeros_hold == Zeros::kMinusOne ? 1 : 0);
  }
  float scale(int64_t group, int64_t row) const {
    const int64_t index = group * rows + row;
    if (scales->entry.dtype == DType::kF32) {
      const uint32_t bits32 = word_at(*scales, index);
      return std::bit_cast<float>(bits32);
    }
    const uint16_t half = half_at(*scales, index);
    return scales->entry.dtype == DType::kF16 ? f16_to_float(half) : bf16_to_float(half);
  }
};

// The bits of the codes follow from the width of qzeros, where config.json leaves a choice.
int bits_of(const GptqSettings& settings, const PackedTensor& zeros, int64_t rows, const std::string& whose) {
  for (const int bits : settings.bits) {
    if (zeros.entry.shape[1] == (rows - 1) / (32 / bits) + 1) return bits;
  }
  throw Error(whose + ": the shape of its qzeros is not that of " + (settings.bits.contains(4) ? "4" : "8") +
              (settings.bits.size() > 1 ? " or 8" : "") + " bits, which its quantization_config says");
}

// How many columns share a scale where g_idx does not say. A module may have a group size of its own.
int64_t group_size(const GptqSettings& settings, int64_t cols, int64_t groups, const std::string& whose) {
  const int64_t size = settings.group > 0 ? std::min(settings.group, cols) : cols;
  if ((cols - 1) / size + 1 == groups) return size;
  if (settings.own_settings && cols % groups == 0) return cols / groups;
  throw Error(whose + ": its scales have " + std::to_string(groups) + " groups, which " + std::to_string(cols) +
              " columns in groups of " + std::to_string(size) + " do not have");
}

std::vector<int32_t> column_groups(const GptqSettings& settings, const PackedTensors& tensors, const std::string& stem,
                                   Source& s, const std::string& what) {
  const int64_t size = group_size(settings, s.cols, s.groups, s.whose);
  const bool listed = tensors.contains(stem + ".g_idx");
  if (listed && s.awq) throw Error(s.whose + " has a g_idx, which AWQ has not");
  if (!listed && settings.act_order) throw Error(s.whose + ": desc_act needs its g_idx, which is missing");
  s.order = listed ? &packed_tensor(tensors, stem + ".g_idx", DType::kI32, {s.cols}, what) : nullptr;
  std::vector<int32_t> group_of(static_cast<size_t>(s.cols));
  for (int64_t col = 0; col < s.cols; ++col) {
    const int64_t group = s.order ? static_cast<int32_t>(word_at(*s.order, col)) : col / size;
    if (group < 0 || group >= s.groups) {
      throw Error(s.whose + ": its g_idx names the group " + std::to_string(group) + " of " + std::to_string(s.groups));
    }
    group_of[static_cast<size_t>(col)] = static_cast<int32_t>(group);
  }
  return group_of;
}

// The widest blocks of columns that have one group each, however groups are ordered. cuda has layouts for 32 and for
// multiples of 64.
int64_t block_of(const std::vector<int32_t>& group_of) {
  int64_t block = static_cast<int64_t>(group_of.size());
  for (size_t col = 1; col < group_of.size(); ++col) {
    if (group_of[col] != group_of[col - 1]) block = std::gcd(block, static_cast<int64_t>(col));
  }
  return block % 64 != 0 && block % 32 == 0 ? 32 : block;
}

// A zero bias, which some writers add, is nothing; Gemma's linear layers have no other.
void refuse_bias(const PackedTensors& tensors, const std::string& stem, const std::string& whose) {
  const auto it = tensors.find(stem + ".bias");
  if (it == tensors.end()) return;
  const bool zero = std::ranges::all_of(it->second.bytes, [](std::byte b) { return b == std::byte{0}; });
  if (!zero || it->second.bytes.empty()) throw Error(whose + " has a bias, which Gemma 4 has not");
}

Source describe(const PackedTensors& tensors, const GptqSettings& settings, const std::string& stem,
                const std::string& what) {
  Source s{};
  s.whose = what + ": weight " + printable(stem);
  s.awq = settings.awq;
  s.zeros_hold = settings.zeros;
  s.codes = &packed_tensor(tensors, stem + ".qweight", DType::kI32, {}, what);
  s.zeros = &packed_tensor(tensors, stem + ".qzeros", DType::kI32, {}, what);
  const auto found = tensors.find(stem + ".scales");
  const DType type = found == tensors.end() ? DType::kF16 : found->second.entry.dtype;
  if (type != DType::kBF16 && type != DType::kF16 && type != DType::kF32) throw Error(s.whose + ": bad type of scales");
  s.scales = &packed_tensor(tensors, stem + ".scales", type, {}, what);
  s.groups = s.scales->entry.shape[0], s.rows = s.scales->entry.shape[1];
  if (s.zeros->entry.shape[0] != s.groups) throw Error(s.whose + ": its qzeros and its scales have different groups");
  s.bits = bits_of(settings, *s.zeros, s.rows, s.whose);
  const int64_t height = s.codes->entry.shape[0], width = s.codes->entry.shape[1];
  if (s.awq ? s.rows % 8 != 0 || width != s.rows / 8 : width != s.rows) {
    throw Error(s.whose + ": its qweight and its scales have different rows");
  }
  if (height > INT32_MAX / 8 || s.rows > INT32_MAX) throw Error(s.whose + ": its qweight is too large");
  s.cols = s.awq ? height : height * s.per_word();
  refuse_bias(tensors, stem, s.whose);
  s.group_of = column_groups(settings, tensors, stem, s, what);
  s.block = block_of(s.group_of);
  return s;
}

template <typename T>
T* allocate(Checkpoint& checkpoint, int64_t count) {
  const std::shared_ptr<T[]> values(new T[static_cast<size_t>(count)]);
  checkpoint.owned.push_back(values);
  return values.get();
}

// Calls body(first row, rows) for blocks of at most kRowBlock rows.
template <typename Body>
void for_row_blocks(ThreadPool& pool, int64_t rows, Body&& body) {
  pool.parallel_for(rows, kRowBlock, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += kRowBlock) body(row, std::min(kRowBlock, end - row));
  });
}

// kInt4's bytes of 8 columns and one row: a word of GPTQ, or a nibble of each of eight words of AWQ.
uint32_t eight_codes(const Source& s, int64_t col, int64_t row) {
  if (!s.awq) return word_at(*s.codes, col / 8 * s.rows + row);
  uint32_t codes = 0;
  const int shift = 4 * kAwqNibble[row % 8];
  for (int64_t i = 0; i < 8; ++i) {
    codes |= (word_at(*s.codes, (col + i) * (s.rows / 8) + row / 8) >> shift & 15) << (4 * i);
  }
  return codes;
}

// 4 bits with scales of 16: exactly kInt4, with the scales' own type for scales and zero points.
void read_int4(Checkpoint& checkpoint, const Source& s, ThreadPool& pool, Matrix& m) {
  const DType type = s.scales->entry.dtype;
  const int64_t blocks = s.cols / s.block;
  auto* codes = allocate<uint8_t>(checkpoint, s.rows * s.cols / 2);
  auto *scale = allocate<uint16_t>(checkpoint, blocks * s.rows),
       *zero = allocate<uint16_t>(checkpoint, blocks * s.rows);
  for_row_blocks(pool, s.rows, [&](int64_t first, int64_t count) {
    for (int64_t col = 0; col < s.cols; col += 8) {
      for (int64_t row = first; row < first + count; ++row) {
        const uint32_t word = eight_codes(s, col, row);
        std::memcpy(codes + (row * s.cols + col) / 2, &word, 4);
      }
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int32_t group = s.group_of[static_cast<size_t>(b * s.block)];
      for (int64_t row = first; row < first + count; ++row) {
        const float whole = static_cast<float>(s.zero(group, row));
        scale[b * s.rows + row] = half_at(*s.scales, group * s.rows + row);
        zero[b * s.rows + row] = type == DType::kF16 ? float_to_f16(whole) : float_to_bf16(whole);
      }
    }
  });
  m.format = Format::kInt4;
  m.group = static_cast<int>(s.block);
  m.codes = Tensor(codes, DType::kU8, {s.rows, s.cols / 2});
  m.scale = Tensor(scale, type, {blocks, s.rows});
  m.zero = Tensor(zero, type, {blocks, s.rows});
}

// Calls put(row, column, code - zero, scale) for all elements of a block of rows.
template <typename Put>
void decode(const Source& s, int64_t first, int64_t count, Put&& put) {
  std::vector<float> scale(static_cast<size_t>(s.groups * count));
  std::vector<int> zero(scale.size());
  for (int64_t g = 0; g < s.groups; ++g) {
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(g * count + i);
      scale[at] = s.scale(g, first + i), zero[at] = s.zero(g, first + i);
    }
  }
  for (int64_t col = 0; col < s.cols; ++col) {
    const int64_t group = s.group_of[static_cast<size_t>(col)] * count;
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(group + i);
      put(first + i, col, s.code(col, first + i) - zero[at], scale[at]);
    }
  }
}

// Codes minus zero points as signed bytes, with scales of float32: exact for 8 bits around 128 and for any 4 bits.
void read_int8(Checkpoint& checkpoint, const Source& s, ThreadPool& pool, Matrix& m) {
  const int64_t blocks = s.cols / s.block;
  auto* codes = allocate<int8_t>(checkpoint, s.rows * s.cols);
  auto* scales = allocate<float>(checkpoint, s.rows * blocks);
  for_row_blocks(pool, s.rows, [&](int64_t first, int64_t count) {
    decode(s, first, count, [&](int64_t row, int64_t col, int code, float scale) {
      codes[row * s.cols + col] = static_cast<int8_t>(code);
      if (col % s.block == 0) scales[row * blocks + col / s.block] = scale;
    });
  });
  m.format = Format::kInt8;
  m.group = static_cast<int>(s.block);
  m.codes = Tensor(codes, DType::kI8, {s.rows, s.cols});
  m.scale = Tensor(scales, DType::kF32, {s.rows, blocks});
}

// Values as GPTQModel computes them: each product rounded once to the scales' type (to BF16 where that is float32).
void read_values(Checkpoint& checkpoint, const Source& s, ThreadPool& pool, Matrix& m) {
  const bool half = s.scales->entry.dtype == DType::kF16;
  std::atomic<bool> too_large = false;
  auto* values = allocate<uint16_t>(checkpoint, s.rows * s.cols);
  for_row_blocks(pool, s.rows, [&](int64_t first, int64_t count) {
    decode(s, first, count, [&](int64_t row, int64_t col, int code, float scale) {
      const float value = static_cast<float>(code) * scale;
      const uint16_t bits = half ? float_to_f16(value) : float_to_bf16(value);
      const uint16_t infinity = half ? 0x7c00 : 0x7f80;
      if ((bits & 0x7fff) >= infinity) too_large = true;
      values[row * s.cols + col] = bits;
    });
  });
  if (too_large) throw Error(s.whose + ": a scale times a code is more than " + (half ? "F16" : "BF16") + " can hold");
  m.format = half ? Format::kF16 : Format::kBF16;
  m.codes = Tensor(values, half ? DType::kF16 : DType::kBF16, {s.rows, s.cols});
}

bool all_zeros_are(const Source& s, int value) {
  for (int64_t g = 0; g < s.groups; ++g) {
    for (int64_t row = 0; row < s.rows; ++row) {
      if (s.zero(g, row) != value) return false;
    }
  }
  return true;
}

Weight read_weight(Checkpoint& checkpoint, const Source& s, ThreadPool& pool) {
  for (int64_t g = 0; g < s.groups; ++g) {
    for (int64_t row = 0; row < s.rows; ++row) {
      constexpr float kMostOfCode = 256;
      if (!std::isfinite(s.scale(g, row))) throw Error(s.whose + ": a scale is not a finite number");
      if (!std::isfinite(s.scale(g, row) * kMostOfCode)) throw Error(s.whose + ": a scale is too large for its codes");
    }
  }
  Weight weight;
  Matrix& m = weight.matrix;
  m.rows = s.rows;
  m.cols = s.cols;
  const bool wide_scales = s.scales->entry.dtype == DType::kF32;
  if (s.block % 8 != 0) {  // columns in an order of their own (desc_act): no format here has a scale for each column
    read_values(checkpoint, s, pool, m);
  } else if (s.bits == 4 && !wide_scales) {
    read_int4(checkpoint, s, pool, m);
  } else if (s.bits == 4 || all_zeros_are(s, 128)) {
    read_int8(checkpoint, s, pool, m);
  } else {  // code - zero has 9 bits
    read_values(checkpoint, s, pool, m);
  }
  weight.shape = {s.rows, s.cols};
  weight.bytes =
      s.codes->bytes.size() + s.scales->bytes.size() + s.zeros->bytes.size() + (s.order ? s.order->bytes.size() : 0);
  return weight;
}

}  // namespace

void add_gptq(Checkpoint& checkpoint, const PackedTensors& tensors, const GptqSettings& settings,
              const std::string& what) {
  ThreadPool pool;
  for (const auto& [name, tensor] : tensors) {
    const std::string stem = name.substr(0, name.rfind('.'));
    if (!tensors.contains(stem + ".qweight")) {
      throw Error(what + ": tensor " + printable(name) + " belongs to no packed weight");
    }
    if (!name.ends_with(".qweight")) continue;
    if (stem.ends_with("embed_tokens")) {
      throw Error(what + ": a quantised embedding (" + printable(name) + ") is not read");
    }
    add_packed_weight(checkpoint, stem + ".weight",
                      read_weight(checkpoint, describe(tensors, settings, stem, what), pool), what);
  }
}

}  // namespace gemma4
