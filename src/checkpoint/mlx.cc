#include "checkpoint/mlx.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/bf16.h"
#include "base/check.h"
#include "base/json_text.h"
#include "checkpoint/packed_weights.h"

// Reading: codes of up to 4 bits become Q4_1 blocks, and of 5 bits Q5_1 (w = q * d + m is the same formula). The scale
// and bias of a group are repeated in its blocks of 32. Wider codes have no such format here and become BF16, as
// mlx.core.dequantize makes them.

namespace gemma4 {
namespace {

constexpr int kBlock = 32;

uint32_t code_at(const uint8_t* row, int64_t col, int bits) {
  const int64_t bit = col * bits;
  uint32_t word = row[bit / 8];
  if (bit % 8 + bits > 8) word |= static_cast<uint32_t>(row[bit / 8 + 1]) << 8;
  return word >> (bit % 8) & ((1u << bits) - 1);
}

struct Source {
  const PackedTensor *codes, *scales, *biases;
  int bits;
  int64_t rows, cols, groups;
};

float value_at(const PackedTensor& tensor, int64_t index) {
  if (tensor.entry.dtype == DType::kF32) {
    float value;
    std::memcpy(&value, tensor.bytes.data() + 4 * index, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, tensor.bytes.data() + 2 * index, 2);
  return tensor.entry.dtype == DType::kBF16 ? bf16_to_float(bits) : f16_to_float(bits);
}

// Float16 holds the 8 significant bits of bf16 from 2^-17 to 65504. Below, the error is at most 2^-25, far less than
// that of the codes.
uint16_t as_half(float value, const std::string& whose) {
  if (!(std::abs(value) <= 65504)) throw Error(whose + ": a scale or bias is too large to be read");
  return float_to_f16(value);
}

// Row `row` as Q4_1 or Q5_1 blocks.
void repack_row(const Source& s, int64_t row, bool fifth_bit, const std::string& whose, uint8_t* out) {
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(s.codes->bytes.data()) + row * (s.cols * s.bits / 8);
  const int64_t group = s.cols / s.groups;
  for (int64_t block = 0; block < s.cols / kBlock; ++block) {
    const int64_t g = row * s.groups + block * kBlock / group;
    const uint16_t d = as_half(value_at(*s.scales, g), whose), m = as_half(value_at(*s.biases, g), whose);
    std::memcpy(out, &d, 2);
    std::memcpy(out + 2, &m, 2);
    out += 4;
    uint32_t code[kBlock], high = 0;
    for (int i = 0; i < kBlock; ++i) {
      code[i] = code_at(codes, block * kBlock + i, s.bits);
      high |= (code[i] >> 4) << i;
    }
    if (fifth_bit) {
      std::memcpy(out, &high, 4);
      out += 4;
    }
    for (int i = 0; i < kBlock / 2; ++i) *out++ = static_cast<uint8_t>((code[i] & 15) | (code[i + 16] & 15) << 4);
  }
}

void unpack_row_bf16(const Source& s, int64_t row, uint16_t* out) {
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(s.codes->bytes.data()) + row * (s.cols * s.bits / 8);
  const int64_t group = s.cols / s.groups;
  for (int64_t col = 0; col < s.cols; ++col) {
    const int64_t g = row * s.groups + col / group;
    const float q = static_cast<float>(code_at(codes, col, s.bits));
    out[col] = float_to_bf16(q * value_at(*s.scales, g) + value_at(*s.biases, g));
  }
}

// Bits and shape follow from the tensors: a group is 32, 64 or 128 columns, so only one width of code fits most shapes;
// where config.json's own bits fit, they decide (`bits`, 0 where unknown).
Source describe(const PackedTensors& tensors, const std::string& stem, const std::string& what) {
  const std::string whose = what + ": weight " + printable(stem);
  Source s{};
  s.codes = &packed_tensor(tensors, stem + ".weight", DType::kU32, {}, what);
  const auto found = tensors.find(stem + ".scales");
  const DType type = found == tensors.end() ? DType::kBF16 : found->second.entry.dtype;
  if (type != DType::kBF16 && type != DType::kF16 && type != DType::kF32) throw Error(whose + ": bad type of scales");
  s.scales = &packed_tensor(tensors, stem + ".scales", type, {}, what);
  s.biases = &packed_tensor(tensors, stem + ".biases", type, s.scales->entry.shape, what);
  s.rows = s.codes->entry.shape[0];
  s.groups = s.scales->entry.shape[1];
  if (s.scales->entry.shape[0] != s.rows) throw Error(whose + ": codes and scales have different rows");
  return s;
}

// Sets bits and cols for groups of `group` columns. Throws Error where the codes are not that many.
void set_group(Source& s, int64_t group, int64_t bits, const std::string& whose) {
  const bool known = (group == 32 || group == 64 || group == 128) && bits >= 2 && bits <= 8 && bits != 7;
  if (!known || s.groups > INT64_MAX / 1024 || s.codes->entry.shape[1] * 32 != s.groups * group * bits) {
    throw Error(whose + ": its codes are not " + std::to_string(bits) + " bits in groups of " + std::to_string(group));
  }
  s.bits = static_cast<int>(bits);
  s.cols = s.groups * group;
}

Weight read_weight(Checkpoint& checkpoint, const Source& s, ThreadPool& pool, const std::string& whose) {
  Weight weight;
  Matrix& m = weight.matrix;
  m.rows = s.rows;
  m.cols = s.cols;
  m.format = s.bits <= 4 ? Format::kQ4_1 : s.bits == 5 ? Format::kQ5_1 : Format::kBF16;
  const int64_t bytes = row_bytes(m);
  const std::shared_ptr<uint8_t[]> copy(new uint8_t[static_cast<size_t>(m.rows * bytes)]);
  checkpoint.owned.push_back(copy);
  pool.parallel_for(m.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      uint8_t* out = copy.get() + row * bytes;
      if (m.format == Format::kBF16) {
        unpack_row_bf16(s, row, reinterpret_cast<uint16_t*>(out));
      } else {
        repack_row(s, row, m.format == Format::kQ5_1, whose, out);
      }
    }
  });
  const bool plain = m.format == Format::kBF16;
  m.codes = Tensor(copy.get(), plain ? DType::kBF16 : DType::kU8, {m.rows, plain ? m.cols : bytes});
  weight.shape = {m.rows, m.cols};
  weight.bytes = s.codes->bytes.size() + s.scales->bytes.size() + s.biases->bytes.size();
  return weight;
}

// Group size and bits of a weight: its own entry of "quantization", else the common ones. A null stands for the default
// of the affine mode (mlx.core.quantize).
std::pair<int64_t, int64_t> settings_of(const nlohmann::json& quantization, const std::string& stem) {
  const nlohmann::json own = quantization.value(stem, nlohmann::json());
  const auto number = [&](const char* key, int64_t usual) -> int64_t {
    const nlohmann::json value =
        own.is_object() && own.contains(key) ? own[key] : quantization.value(key, nlohmann::json());
    return value.is_null() ? usual : value.is_number_integer() ? value.get<int64_t>() : 0;
  };
  return {number("group_size", 64), number("bits", 4)};
}

}  // namespace

void add_mlx(Checkpoint& checkpoint, const PackedTensors& tensors, const std::string& what) {
  const nlohmann::json config = parse_strict_json(checkpoint.config, what + ": config.json");
  const nlohmann::json quantization = config.value("quantization", nlohmann::json::object());
  ThreadPool pool;
  for (const auto& [name, tensor] : tensors) {
    const std::string stem = name.substr(0, name.rfind('.'));
    const std::string whose = what + ": weight " + printable(stem);
    if (!tensors.contains(stem + ".weight")) throw Error(whose + " has scales or biases but no packed codes");
    if (!name.ends_with(".weight")) continue;
    Source s = describe(tensors, stem, what);
    const auto [group, bits] = settings_of(quantization, stem);
    set_group(s, group, bits, whose);
    add_packed_weight(checkpoint, stem + ".weight", read_weight(checkpoint, s, pool, whose), what);
  }
}

void mlx_quantize_row(const float* in, int64_t cols, const MlxQuantization& q, uint32_t* words, uint16_t* scales,
                      uint16_t* biases) {
  const float top = static_cast<float>((1 << q.bits) - 1);
  std::fill_n(words, cols * q.bits / 32, 0u);
  for (int64_t g = 0; g < cols / q.group; ++g) {
    const float* w = in + g * q.group;
    const auto [low, high] = std::minmax_element(w, w + q.group);
    // The end of larger magnitude is met exactly; the sign of the scale says which end is code 0.
    const bool from_low = std::abs(*low) > std::abs(*high);
    float scale = std::max((*high - *low) / top, 1e-7f);
    if (!from_low) scale = -scale;
    const float edge = from_low ? *low : *high;
    const float q0 = std::rint(edge / scale);
    float bias = 0;
    if (q0 != 0) {
      scale = edge / q0;
      bias = edge;
    }
    scales[g] = float_to_bf16(scale);
    biases[g] = float_to_bf16(bias);
    for (int64_t i = 0; i < q.group; ++i) {
      const auto code = static_cast<uint64_t>(std::clamp(std::rint((w[i] - bias) / scale), 0.f, top));
      const int64_t bit = (g * q.group + i) * q.bits;
      words[bit / 32] |= static_cast<uint32_t>(code << (bit % 32));
      if (bit % 32 + q.bits > 32) words[bit / 32 + 1] |= static_cast<uint32_t>(code >> (32 - bit % 32));
    }
  }
}

}  // namespace gemma4
