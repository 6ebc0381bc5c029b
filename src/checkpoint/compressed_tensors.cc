// compressed-tensors' pack-quantized weights as kInt4 and kInt8. Layout:
// compressed_tensors/compressors/pack_quantized/helpers.py. A code q of -8 .. 7 is stored as q + 8, eight to an int32,
// the first in the lowest bits: read as bytes that is kInt4's own layout, so codes stay mapped. Scales are [rows,
// groups] where kInt4 has [groups, rows], and zero points are packed along the rows: both are copied. A code of 8 bits
// is stored as q + 128, four to an int32; such a weight is copied.
#include <cstring>

#include "base/bf16.h"
#include "base/check.h"
#include "base/json_text.h"
#include "checkpoint/packed_weights.h"

namespace gemma4 {
namespace {

constexpr std::string_view kPacked = ".weight_packed";
constexpr float kOffset = 8;  // what is added to a signed code

float float_scale(const PackedTensor& tensor, int64_t index) {
  const std::byte* data = tensor.bytes.data();
  float value;
  if (tensor.entry.dtype == DType::kF32) {
    std::memcpy(&value, data + 4 * index, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, data + 2 * index, 2);
  return tensor.entry.dtype == DType::kBF16 ? bf16_to_float(bits) : f16_to_float(bits);
}

// Scale `index` as bf16, exactly. Throws Error where bf16 cannot hold it.
uint16_t scale_at(const PackedTensor& tensor, int64_t index, const std::string& whose) {
  const float value = float_scale(tensor, index);
  const uint16_t rounded = float_to_bf16(value);
  if (bf16_to_float(rounded) != value) throw Error(whose + ": its scales do not fit bf16, the only type read");
  return rounded;
}

// A [groups, rows] tensor of bf16 that the checkpoint owns.
Tensor own(Checkpoint& checkpoint, int64_t groups, int64_t rows) {
  const std::shared_ptr<uint16_t[]> values(new uint16_t[static_cast<size_t>(groups * rows)]);
  checkpoint.owned.push_back(values);
  return Tensor(values.get(), DType::kBF16, {groups, rows});
}

void copy_scales(const PackedTensor& tensor, const std::string& whose, Tensor to) {
  for (int64_t row = 0; row < to.row_size(); ++row) {
    for (int64_t g = 0; g < to.rows(); ++g) {
      to.row<uint16_t>(g)[row] = scale_at(tensor, row * to.rows() + g, whose);
    }
  }
}

// Zero points lie eight rows to an int32: [ceil(rows / 8), groups].
void copy_zeros(const PackedTensor* tensor, Tensor to) {
  const uint16_t middle = float_to_bf16(kOffset);
  for (int64_t g = 0; g < to.rows(); ++g) {
    for (int64_t row = 0; row < to.row_size(); ++row) {
      uint16_t& zero = to.row<uint16_t>(g)[row];
      if (tensor == nullptr) {
        zero = middle;
        continue;
      }
      uint32_t word;
      std::memcpy(&word, tensor->bytes.data() + 4 * (row / 8 * to.rows() + g), 4);
      zero = float_to_bf16(static_cast<float>(word >> (4 * (row % 8)) & 15));
    }
  }
}

// weight_g_idx names the group of every column. Read where that is the usual one: column / group, or -1 for "not set".
bool columns_in_order(const PackedTensor& tensor, int64_t group) {
  for (int64_t i = 0; i < tensor.entry.shape[0]; ++i) {
    int32_t index;
    std::memcpy(&index, tensor.bytes.data() + 4 * i, 4);
    if (index != -1 && index != i / group) return false;
  }
  return true;
}

// A weight's tensors, and what their shapes say.
struct Packed {
  std::string whose;
  const PackedTensor *codes, *scale;
  int64_t rows, cols, groups;
  int per_word;  // codes of an int32
  int group() const { return static_cast<int>(cols / groups); }
};

Packed describe(const PackedTensors& tensors, const std::string& stem, const std::string& what) {
  Packed p{};
  p.whose = what + ": weight " + printable(stem);
  p.codes = &packed_tensor(tensors, stem + ".weight_packed", DType::kI32, {}, what);
  const PackedTensor& shape = packed_tensor(tensors, stem + ".weight_shape", DType::kI64, {2}, what);
  int64_t size[2];
  std::memcpy(size, shape.bytes.data(), sizeof size);
  p.rows = p.codes->entry.shape[0];
  const int64_t words = p.codes->entry.shape[1];
  p.per_word = size[1] == words * 4 ? 4 : 8;
  p.cols = words * p.per_word;
  if (size[0] != p.rows || size[1] != p.cols) {
    throw Error(p.whose + ": its weight_shape and its packed codes disagree (columns must be whole words of codes)");
  }
  const auto found = tensors.find(stem + ".weight_scale");
  const DType type = found == tensors.end() ? DType::kBF16 : found->second.entry.dtype;
  if (type != DType::kBF16 && type != DType::kF16 && type != DType::kF32) throw Error(p.whose + ": bad type of scales");
  p.scale = &packed_tensor(tensors, stem + ".weight_scale", type, {}, what);
  p.groups = p.scale->entry.shape[1];
  if (p.scale->entry.shape[0] != p.rows || p.cols % p.groups != 0 || p.cols / p.groups > INT32_MAX) {
    throw Error(p.whose + ": the shape of its scales does not fit");
  }
  const std::string order = stem + ".weight_g_idx";
  if (tensors.contains(order) &&
      !columns_in_order(packed_tensor(tensors, order, DType::kI32, {p.cols}, what), p.group())) {
    throw Error(p.whose + ": columns in another order (g_idx) are not read");
  }
  return p;
}

Weight read_4_bits(Checkpoint& checkpoint, const Packed& p, const PackedTensor* zero) {
  Weight weight;
  Matrix& m = weight.matrix;
  m.format = Format::kInt4;
  m.rows = p.rows;
  m.cols = p.cols;
  m.group = p.group();
  if (m.group % 2 != 0) throw Error(p.whose + ": groups of an odd number of columns are not read");
  m.codes = Tensor(const_cast<std::byte*>(p.codes->bytes.data()), DType::kU8, {m.rows, m.cols / 2});
  m.scale = own(checkpoint, p.groups, m.rows);
  m.zero = own(checkpoint, p.groups, m.rows);
  copy_scales(*p.scale, p.whose, m.scale);
  copy_zeros(zero, m.zero);
  return weight;
}

Weight read_8_bits(Checkpoint& checkpoint, const Packed& p) {
  const std::shared_ptr<int8_t[]> codes(new int8_t[static_cast<size_t>(p.rows * p.cols)]);
  const std::shared_ptr<float[]> scales(new float[static_cast<size_t>(p.rows * p.groups)]);
  checkpoint.owned.push_back(codes);
  checkpoint.owned.push_back(scales);
  const auto* stored = reinterpret_cast<const uint8_t*>(p.codes->bytes.data());
  for (int64_t i = 0; i < p.rows * p.cols; ++i) codes[i] = static_cast<int8_t>(stored[i] - 128);
  for (int64_t i = 0; i < p.rows * p.groups; ++i) scales[i] = float_scale(*p.scale, i);
  Weight weight;
  Matrix& m = weight.matrix;
  m.format = Format::kInt8;
  m.rows = p.rows;
  m.cols = p.cols;
  m.group = p.group();
  m.codes = Tensor(codes.get(), DType::kI8, {m.rows, m.cols});
  m.scale = Tensor(scales.get(), DType::kF32, {m.rows, p.groups});
  return weight;
}

Weight read_weight(Checkpoint& checkpoint, const PackedTensors& tensors, const std::string& stem,
                   const std::string& what) {
  const Packed p = describe(tensors, stem, what);
  const bool has_zero = tensors.contains(stem + ".weight_zero_point");
  const PackedTensor* zero = nullptr;
  if (has_zero && p.per_word == 8) {
    zero = &packed_tensor(tensors, stem + ".weight_zero_point", DType::kI32, {(p.rows + 7) / 8, p.groups}, what);
  } else if (has_zero) {
    throw Error(p.whose + ": 8 bits with zero points are not read");
  }
  Weight weight = p.per_word == 8 ? read_4_bits(checkpoint, p, zero) : read_8_bits(checkpoint, p);
  weight.shape = {p.rows, p.cols};
  weight.bytes = p.codes->bytes.size() + p.scale->bytes.size() + (zero ? zero->bytes.size() : 0);
  return weight;
}

}  // namespace

void add_compressed_tensors(Checkpoint& checkpoint, const PackedTensors& tensors, const std::string& what) {
  for (const auto& [name, tensor] : tensors) {
    const size_t dot = name.rfind('.');
    const std::string stem = name.substr(0, dot);
    if (!tensors.contains(stem + std::string(kPacked))) {
      throw Error(what + ": tensor " + printable(name) + " belongs to no packed weight");
    }
    if (!name.ends_with(kPacked)) continue;
    add_packed_weight(checkpoint, stem + ".weight", read_weight(checkpoint, tensors, stem, what), what);
  }
}

}  // namespace gemma4
