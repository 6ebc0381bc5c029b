#include "checkpoint/mlx.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/bf16.h"
#include "base/check.h"
#include "base/json_text.h"
#include "checkpoint/packed_weights.h"
#include "quant/codebook.h"

// Reading: codes of up to 4 bits become Q4_1 blocks, and of 5 bits Q5_1 (w = q * d + m is the same formula). The scale
// and bias of a group are repeated in its blocks of 32. Wider codes have no such format here and become BF16, as
// mlx.core.dequantize makes them. Of the modes of floating point, codes of 4 bits become int8 matrices: twice an E2M1
// value is a whole number, and half a scale is a BF16 number. Codes of E4M3 (mxfp8) become BF16.

namespace gemma4 {
namespace {

constexpr int kBlock = 32;

uint32_t code_at(const uint8_t* row, int64_t col, int bits) {
  const int64_t bit = col * bits;
  uint32_t word = row[bit / 8];
  if (bit % 8 + bits > 8) word |= static_cast<uint32_t>(row[bit / 8 + 1]) << 8;
  return word >> (bit % 8) & ((1u << bits) - 1);
}

// The modes of mlx.core.quantize with their usual group and bits. Those of floating point have no others.
struct Mode {
  const char* name;
  int64_t group, bits;
};
constexpr Mode kAffine = {"affine", 64, 4}, kMxfp4 = {"mxfp4", 32, 4}, kNvfp4 = {"nvfp4", 16, 4},
               kMxfp8 = {"mxfp8", 32, 8};
constexpr const Mode* kModes[] = {&kAffine, &kMxfp4, &kNvfp4, &kMxfp8};

struct Source {
  const PackedTensor *codes, *scales, *biases;  // biases: null but in the affine mode
  const Mode* mode;
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

// Scale `g` (of all groups of the matrix) of a mode of floating point. Throws Error: it is no number, or so large that
// a code times it is none.
float scale_at(const Source& s, int64_t g, const std::string& whose) {
  const auto bits = static_cast<uint8_t>(s.scales->bytes[static_cast<size_t>(g)]);
  if (s.mode == &kNvfp4) {
    if ((bits & 0x7f) == 0x7f) throw Error(whose + ": a scale is not a number");
    return bits & 0x80 ? -e4m3_magnitude(bits) : e4m3_magnitude(bits);
  }
  // E8M0: a power of two. 6 is E2M1's largest value, 448 E4M3's.
  const int exponent = bits - 127, most = s.mode == &kMxfp4 ? 125 : 119;
  if (exponent > most) throw Error(whose + ": a scale is too large to be read");
  return std::ldexp(1.f, exponent);
}

// Row `row` as int8 codes [cols] and BF16 scales [groups].
void unpack_row_int8(const Source& s, int64_t row, const std::string& whose, int8_t* codes, uint16_t* scales) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(s.codes->bytes.data()) + row * (s.cols / 2);
  for (int64_t i = 0; i < s.cols / 2; ++i) {
    codes[2 * i] = kE2m1Values[bytes[i] & 15];
    codes[2 * i + 1] = kE2m1Values[bytes[i] >> 4];
  }
  for (int64_t g = 0; g < s.groups; ++g) scales[g] = float_to_bf16(scale_at(s, row * s.groups + g, whose) / 2);
}

void unpack_row_mxfp8(const Source& s, int64_t row, const std::string& whose, uint16_t* out) {
  const auto* codes = reinterpret_cast<const uint8_t*>(s.codes->bytes.data()) + row * s.cols;
  for (int64_t g = 0; g < s.groups; ++g) {
    const float scale = scale_at(s, row * s.groups + g, whose);
    for (int64_t col = g * kMxfp8.group; col < (g + 1) * kMxfp8.group; ++col) {
      if ((codes[col] & 0x7f) == 0x7f) throw Error(whose + ": a code is not a number");
      const float value = e4m3_magnitude(codes[col]) * scale;
      out[col] = float_to_bf16(codes[col] & 0x80 ? -value : value);
    }
  }
}

// The mode follows from the tensors: scales of 8 bits are floating point's, and a group then has 2, 4 or 8 words.
const Mode* mode_of(const Source& s, const std::string& whose) {
  if (s.biases != nullptr) return &kAffine;
  for (const Mode* mode : {&kMxfp4, &kNvfp4, &kMxfp8}) {
    if (s.codes->entry.shape[1] == s.groups * (mode->group * mode->bits / 32)) return mode;
  }
  throw Error(whose + ": its codes do not fit its scales");
}

Source describe(const PackedTensors& tensors, const std::string& stem, const std::string& what) {
  const std::string whose = what + ": weight " + printable(stem);
  Source s{};
  s.codes = &packed_tensor(tensors, stem + ".weight", DType::kU32, {}, what);
  const auto found = tensors.find(stem + ".scales");
  const DType type = found == tensors.end() ? DType::kBF16 : found->second.entry.dtype;
  const bool affine = type == DType::kBF16 || type == DType::kF16 || type == DType::kF32;
  if (!affine && type != DType::kU8) throw Error(whose + ": bad type of scales");
  s.scales = &packed_tensor(tensors, stem + ".scales", type, {}, what);
  s.rows = s.codes->entry.shape[0];
  s.groups = s.scales->entry.shape[1];
  if (s.scales->entry.shape[0] != s.rows) throw Error(whose + ": codes and scales have different rows");
  if (s.groups > INT64_MAX / 1024) throw Error(whose + ": it has too many groups");
  if (affine) {
    s.biases = &packed_tensor(tensors, stem + ".biases", type, s.scales->entry.shape, what);
  } else if (tensors.contains(stem + ".biases")) {
    throw Error(whose + " has biases beside scales of 8 bits");
  }
  s.mode = mode_of(s, whose);
  return s;
}

// What config.json says of a weight.
struct Settings {
  const Mode* mode;
  int64_t group, bits;
};

// Sets bits and cols. Throws Error where the codes are not those of the settings.
void set_group(Source& s, const Settings& settings, const std::string& whose) {
  const int64_t group = settings.group, bits = settings.bits;
  if (settings.mode != s.mode) {
    throw Error(whose + ": its tensors are of the mode " + s.mode->name + ", not " + settings.mode->name);
  }
  const bool known = s.mode == &kAffine
                         ? (group == 32 || group == 64 || group == 128) && bits >= 2 && bits <= 8 && bits != 7
                         : group == s.mode->group && bits == s.mode->bits;
  if (!known || s.codes->entry.shape[1] * 32 != s.groups * group * bits) {
    throw Error(whose + ": its codes are not " + std::to_string(bits) + " bits in groups of " + std::to_string(group));
  }
  s.bits = static_cast<int>(bits);
  s.cols = s.groups * group;
}

// Memory that the checkpoint owns.
uint8_t* allocate(Checkpoint& checkpoint, int64_t bytes) {
  const std::shared_ptr<uint8_t[]> copy(new uint8_t[static_cast<size_t>(bytes)]);
  checkpoint.owned.push_back(copy);
  return copy.get();
}

Matrix read_int8(Checkpoint& checkpoint, const Source& s, ThreadPool& pool, const std::string& whose) {
  Matrix m;
  m.format = Format::kInt8;
  m.rows = s.rows;
  m.cols = s.cols;
  m.group = static_cast<int>(s.mode->group);
  auto* codes = reinterpret_cast<int8_t*>(allocate(checkpoint, m.rows * m.cols));
  auto* scales = reinterpret_cast<uint16_t*>(allocate(checkpoint, m.rows * s.groups * 2));
  pool.parallel_for(m.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      unpack_row_int8(s, row, whose, codes + row * m.cols, scales + row * s.groups);
    }
  });
  m.codes = Tensor(codes, DType::kI8, {m.rows, m.cols});
  m.scale = Tensor(scales, DType::kBF16, {m.rows, s.groups});
  return m;
}

Matrix read_rows(Checkpoint& checkpoint, const Source& s, ThreadPool& pool, const std::string& whose) {
  Matrix m;
  m.rows = s.rows;
  m.cols = s.cols;
  m.format = s.bits <= 4 ? Format::kQ4_1 : s.bits == 5 ? Format::kQ5_1 : Format::kBF16;
  const int64_t bytes = row_bytes(m);
  uint8_t* copy = allocate(checkpoint, m.rows * bytes);
  pool.parallel_for(m.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      uint8_t* out = copy + row * bytes;
      if (m.format != Format::kBF16) {
        repack_row(s, row, m.format == Format::kQ5_1, whose, out);
      } else if (s.mode == &kAffine) {
        unpack_row_bf16(s, row, reinterpret_cast<uint16_t*>(out));
      } else {
        unpack_row_mxfp8(s, row, whose, reinterpret_cast<uint16_t*>(out));
      }
    }
  });
  const bool plain = m.format == Format::kBF16;
  m.codes = Tensor(copy, plain ? DType::kBF16 : DType::kU8, {m.rows, plain ? m.cols : bytes});
  return m;
}

Weight read_weight(Checkpoint& checkpoint, const Source& s, ThreadPool& pool, const std::string& whose) {
  Weight weight;
  const bool four = s.mode == &kMxfp4 || s.mode == &kNvfp4;
  weight.matrix = four ? read_int8(checkpoint, s, pool, whose) : read_rows(checkpoint, s, pool, whose);
  weight.shape = {s.rows, s.cols};
  weight.bytes = s.codes->bytes.size() + s.scales->bytes.size() + (s.biases ? s.biases->bytes.size() : 0);
  return weight;
}

// The mode that "quantization", or a weight's own entry in it, names.
const Mode* mode_named(const nlohmann::json& settings, const std::string& what) {
  const nlohmann::json name = settings.value("mode", nlohmann::json(kAffine.name));
  std::string known;
  for (const Mode* mode : kModes) {
    if (name == mode->name) return mode;
    known += (known.empty() ? "" : mode == kModes[std::size(kModes) - 1] ? " and " : ", ") + std::string(mode->name);
  }
  throw Error(what + ": MLX quantisation " + printable(name.dump()) + "; " + known + " are read");
}

// A weight's own entry of "quantization", where what is absent or null is mlx's default; else the common settings,
// whose mode, group and bits a weight of floating point need not share (mlx-lm takes them from the tensors, too).
Settings settings_of(const nlohmann::json& quantization, const std::string& stem, const Mode* found,
                     const std::string& what) {
  const nlohmann::json own = quantization.value(stem, nlohmann::json());
  if (!own.is_object() && found != &kAffine) return {found, found->group, found->bits};
  const nlohmann::json& entry = own.is_object() ? own : quantization;
  const Mode* mode = own.is_object() ? mode_named(own, what) : &kAffine;
  const auto number = [&](const char* key, int64_t usual) -> int64_t {
    const nlohmann::json value = entry.value(key, nlohmann::json());
    return value.is_null() ? usual : value.is_number_integer() ? value.get<int64_t>() : 0;
  };
  return {mode, number("group_size", mode->group), number("bits", mode->bits)};
}

}  // namespace

void check_mlx(const nlohmann::json& quantization, const std::string& what) { mode_named(quantization, what); }

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
    set_group(s, settings_of(quantization, stem, s.mode, whose), whose);
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
