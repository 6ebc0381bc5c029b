// compressed-tensors' pack-quantized weights as kInt4. Layout:
// compressed_tensors/compressors/pack_quantized/helpers.py. A code q of -8 .. 7 is stored as q + 8, eight to an int32,
// the first in the lowest bits: read as bytes that is kInt4's own layout, so codes stay mapped. Scales are [rows,
// groups] where kInt4 has [groups, rows], and zero points are packed along the rows: both are copied.
#include <cstring>

#include "base/bf16.h"
#include "base/check.h"
#include "base/json_text.h"
#include "checkpoint/packed_weights.h"

namespace gemma4 {
namespace {

constexpr std::string_view kPacked = ".weight_packed";
constexpr float kOffset = 8;  // what is added to a signed code

// Scale `index` as bf16, exactly. Throws Error where bf16 cannot hold it.
uint16_t scale_at(const PackedTensor& tensor, int64_t index, const std::string& whose) {
  const std::byte* data = tensor.bytes.data();
  float value;
  if (tensor.entry.dtype == DType::kF32) {
    std::memcpy(&value, data + 4 * index, 4);
  } else {
    uint16_t bits;
    std::memcpy(&bits, data + 2 * index, 2);
    if (tensor.entry.dtype == DType::kBF16) return bits;
    value = f16_to_float(bits);
  }
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

Weight read_weight(Checkpoint& checkpoint, const PackedTensors& tensors, const std::string& stem,
                   const std::string& what) {
  const std::string whose = what + ": weight " + printable(stem);
  const PackedTensor& packed = packed_tensor(tensors, stem + ".weight_packed", DType::kI32, {}, what);
  const PackedTensor& shape = packed_tensor(tensors, stem + ".weight_shape", DType::kI64, {2}, what);
  int64_t size[2];
  std::memcpy(size, shape.bytes.data(), sizeof size);
  Weight weight;
  Matrix& m = weight.matrix;
  m.format = Format::kInt4;
  m.rows = packed.entry.shape[0];
  m.cols = packed.entry.shape[1] * 8;
  if (size[0] != m.rows || size[1] != m.cols) {
    throw Error(whose + ": its weight_shape and its packed codes disagree (columns must be a multiple of 8)");
  }
  const auto found = tensors.find(stem + ".weight_scale");
  const DType type = found == tensors.end() ? DType::kBF16 : found->second.entry.dtype;
  if (type != DType::kBF16 && type != DType::kF16 && type != DType::kF32) throw Error(whose + ": bad type of scales");
  const PackedTensor& scale = packed_tensor(tensors, stem + ".weight_scale", type, {}, what);
  const int64_t groups = scale.entry.shape[1];
  if (scale.entry.shape[0] != m.rows || m.cols % groups != 0 || m.cols / groups > INT32_MAX) {
    throw Error(whose + ": the shape of its scales does not fit");
  }
  m.group = static_cast<int>(m.cols / groups);
  if (m.group % 2 != 0) throw Error(whose + ": groups of an odd number of columns are not read");
  const std::string order = stem + ".weight_g_idx";
  if (tensors.contains(order) &&
      !columns_in_order(packed_tensor(tensors, order, DType::kI32, {m.cols}, what), m.group)) {
    throw Error(whose + ": columns in another order (g_idx) are not read");
  }
  const PackedTensor* zero = nullptr;
  if (tensors.contains(stem + ".weight_zero_point")) {
    zero = &packed_tensor(tensors, stem + ".weight_zero_point", DType::kI32, {(m.rows + 7) / 8, groups}, what);
  }
  m.codes = Tensor(const_cast<std::byte*>(packed.bytes.data()), DType::kU8, {m.rows, m.cols / 2});
  m.scale = own(checkpoint, groups, m.rows);
  m.zero = own(checkpoint, groups, m.rows);
  copy_scales(scale, whose, m.scale);
  copy_zeros(zero, m.zero);
  weight.shape = {m.rows, m.cols};
  weight.bytes = packed.bytes.size() + scale.bytes.size() + (zero ? zero->bytes.size() : 0);
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
