#include "checkpoint/torchao.h"

#include <algorithm>
#include <set>

#include "base/bytes.h"
#include "base/check.h"
#include "base/json_text.h"
#include "checkpoint/huggingface.h"
#include "checkpoint/names.h"

namespace gemma4 {
namespace {

using nlohmann::json;

constexpr const char* kTiedHead = "lm_head.weight";

// A tensor and the file that it lies in.
struct PhysicalTensor {
  const SafetensorsEntry& entry;
  const Safetensors& file;
};

// The tensors of torchao's files, and which of them a weight has used.
struct PhysicalTensors {
  Checkpoint& checkpoint;
  const std::map<std::string, std::string>& metadata;
  const std::string& what;
  std::map<std::string, PhysicalTensor> by_name;
  std::set<std::string> used;

  const PhysicalTensor& take(const std::string& name) {
    const auto it = by_name.find(name);
    if (it == by_name.end()) throw Error(what + ": the tensor " + printable(name) + " is missing");
    if (!used.insert(name).second) throw Error(what + ": the tensor " + printable(name) + " is used twice");
    return it->second;
  }

  // The same, for a tensor whose type and shape follow from those of the weight.
  Tensor take(const std::string& name, DType type, int64_t rows, int64_t cols) {
    const auto& [entry, file] = take(name);
    if (entry.dtype != type) {
      throw Error(what + ": " + printable(name) + " has the type " + dtype_name(entry.dtype) + " where " +
                  dtype_name(type) + " is due");
    }
    if (entry.shape != std::vector<int64_t>{rows, cols}) {
      throw Error(what + ": " + printable(name) + " does not have the shape [" + std::to_string(rows) + ", " +
                  std::to_string(cols) + "] that its weight needs");
    }
    return view_of(checkpoint, entry, file, rows, cols);
  }
};

// Member `key` of `value`, or a thrown Error.
const json& member(const json& value, const char* key, const std::string& whose) {
  if (!value.is_object() || !value.contains(key)) throw Error(whose + ": its metadata lacks " + key);
  return value[key];
}

int64_t size_in(const json& list, size_t i, const std::string& whose) {
  if (!list.is_array() || i >= list.size() || !list[i].is_number_unsigned() ||
      list[i].get<uint64_t>() > static_cast<uint64_t>(INT64_MAX) || list[i].get<int64_t>() == 0) {
    throw Error(whose + ": its metadata holds a bad size");
  }
  return list[i].get<int64_t>();
}

void expect_dtype(const json& data, const char* key, const char* value, const std::string& whose) {
  const json& type = member(data, key, whose);
  if (!type.is_object() || type.value("_data", json()) != value) {
    throw Error(whose + ": " + key + " is not " + value);
  }
}

// Columns that share a scale, from block_size [1, group]; they divide `cols`.
int group_of(const json& data, int64_t cols, const std::string& whose) {
  const json& block = member(data, "block_size", whose);
  if (!block.is_array() || block.size() != 2 || size_in(block, 0, whose) != 1) {
    throw Error(whose + ": its block_size is not [1, group]");
  }
  const int64_t group = size_in(block, 1, whose);
  if (group > INT32_MAX || cols % group != 0) {
    throw Error(whose + ": groups of " + std::to_string(group) + " do not divide its " + std::to_string(cols) +
                " columns");
  }
  return static_cast<int>(group);
}

Weight read_int4(PhysicalTensors& tensors, const std::string& name, const json& data, const std::string& whose) {
  expect_dtype(data, "activation_dtype", "bfloat16", whose);
  const json& shape = member(data, "shape", whose);
  if (!shape.is_array() || shape.size() != 2) throw Error(whose + ": an int4 weight has two dimensions");
  Weight weight;
  Matrix& m = weight.matrix;
  m.format = Format::kInt4;
  m.rows = size_in(shape, 0, whose);
  m.cols = size_in(shape, 1, whose);
  if (m.cols % 2 != 0) throw Error(whose + ": an odd number of columns cannot be int4");
  m.group = group_of(data, m.cols, whose);
  m.codes = tensors.take(torchao_tensor(name, "qdata"), DType::kU8, m.rows, m.cols / 2);
  m.scale = tensors.take(torchao_tensor(name, "scale"), DType::kBF16, m.cols / m.group, m.rows);
  m.zero = tensors.take(torchao_tensor(name, "zero_point"), DType::kBF16, m.cols / m.group, m.rows);
  weight.bytes = static_cast<uint64_t>(matrix_bytes(m));
  weight.shape = {m.rows, m.cols};
  return weight;
}

// Codes I8 [rows, cols], scale BF16 or F32 [rows, cols/group]; zero points, where there are any, are all 0.
Weight read_int8(PhysicalTensors& tensors, const std::string& name, const json& data, bool has_zero,
                 const std::string& whose) {
  const auto& [codes, file] = tensors.take(torchao_tensor(name, "qdata"));
  if (codes.dtype != DType::kI8 || codes.shape.size() != 2 || codes.end == codes.begin) {
    throw Error(whose + ": its qdata is not a two-dimensional I8 tensor");
  }
  Weight weight;
  Matrix& m = weight.matrix;
  m.format = Format::kInt8;
  m.rows = codes.shape[0];
  m.cols = codes.shape[1];
  m.group = group_of(data, m.cols, whose);
  m.codes = view_of(tensors.checkpoint, codes, file, m.rows, m.cols);
  const std::string scale = torchao_tensor(name, "scale");
  const auto found = tensors.by_name.find(scale);
  const bool wide = found != tensors.by_name.end() && found->second.entry.dtype == DType::kF32;
  m.scale = tensors.take(scale, wide ? DType::kF32 : DType::kBF16, m.rows, m.cols / m.group);
  weight.bytes = static_cast<uint64_t>(matrix_bytes(m));
  weight.shape = codes.shape;
  if (!has_zero) return weight;
  const Tensor zero = tensors.take(torchao_tensor(name, "zero_point"), DType::kI8, m.rows, m.cols / m.group);
  const auto* values = static_cast<const int8_t*>(zero.data);
  if (std::any_of(values, values + zero.size(), [](int8_t value) { return value != 0; })) {
    throw Error(whose + ": its zero points are not all 0; asymmetric int8 is not read");
  }
  weight.bytes += static_cast<uint64_t>(zero.bytes());
  return weight;
}

// Codes of 1 to 8 bits, each in a byte. The width says only which codes there are.
Weight read_intx(PhysicalTensors& tensors, const std::string& name, const json& data, const std::string& whose) {
  const json& type = member(data, "target_dtype", whose);
  const json found = type.is_object() ? type.value("_data", json()) : json();
  const std::string target = found.is_string() ? found.get<std::string>() : "";
  const bool whole = target.size() == 4 && target.starts_with("int") && target[3] >= '1' && target[3] <= '8';
  if (!whole) throw Error(whose + ": target_dtype is not one of int1 to int8");
  if (!data.value("activation_quantization", json()).is_null()) {
    throw Error(whose + ": activation_quantization is not read");
  }
  return read_int8(tensors, name, data, true, whose);
}

// What transformers' TorchAoConfig makes of Int8WeightOnlyConfig; zero points are absent or 0.
Weight read_int8_tensor(PhysicalTensors& tensors, const std::string& name, const json& data, bool has_zero,
                        const std::string& whose) {
  if (!data.value("act_quant_kwargs", json()).is_null()) {
    throw Error(whose + ": quantised activations (act_quant_kwargs) are not read");
  }
  return read_int8(tensors, name, data, has_zero, whose);
}

// The vision tower's position table: codes I8 [2, positions, hidden], scale F32 [2, positions, 1]; one group a row.
Weight read_position_table(PhysicalTensors& tensors) {
  const std::string whose = tensors.what + ": " + kPositionCodes;
  const auto& [codes, file] = tensors.take(kPositionCodes);
  const auto& [scale, scale_file] = tensors.take(kPositionScale);
  if (codes.dtype != DType::kI8 || codes.shape.size() != 3 || codes.end == codes.begin || codes.shape[2] > INT32_MAX) {
    throw Error(whose + " is not a three-dimensional I8 tensor");
  }
  if (scale.dtype != DType::kF32 || scale.shape != std::vector<int64_t>{codes.shape[0], codes.shape[1], 1}) {
    throw Error(tensors.what + ": " + kPositionScale + " is not F32 with one value for each row of " + kPositionCodes);
  }
  Weight weight;
  Matrix& m = weight.matrix;
  m.format = Format::kInt8;
  m.rows = checked_mul(codes.shape[0], codes.shape[1], whose);
  m.cols = codes.shape[2];
  m.group = static_cast<int>(m.cols);
  m.codes = view_of(tensors.checkpoint, codes, file, m.rows, m.cols);
  m.scale = view_of(tensors.checkpoint, scale, scale_file, m.rows, 1);
  weight.bytes = static_cast<uint64_t>(matrix_bytes(m));
  weight.shape = codes.shape;
  return weight;
}

void add_weight(Checkpoint& checkpoint, const std::string& name, Weight weight, const std::string& whose) {
  if (!is_model_tensor(name)) throw Error(whose + " is not one that Gemma 4 has (text or vision)");
  if (!checkpoint.weights.emplace(name, std::move(weight)).second) throw Error(whose + " appears twice");
  checkpoint.order.push_back(name);
}

// Are zero_point's among a weight's tensors, whose names are listed in any order? Throws Error: others than qdata,
// scale and zero_point; a list without qdata or scale, or without zero_point where that may not be absent.
bool has_zero_points(const json& listed, bool may_be_absent, const std::string& whose) {
  std::set<std::string> names;
  if (listed.is_array()) {
    for (const json& name : listed) names.insert(name.is_string() ? name.get<std::string>() : "");
  }
  const bool found = names.erase("zero_point") == 1;
  if (names != std::set<std::string>{"qdata", "scale"} || listed.size() != (found ? 3u : 2u) ||
      (!found && !may_be_absent)) {
    throw Error(whose + ": its parts are not qdata, scale and zero_point");
  }
  return found;
}

// `name`: as the file has it. Transformers writes its own names, torchao's tools those of the text model.
void add_logical(PhysicalTensors& tensors, const std::string& name) {
  const std::string model_name = from_huggingface_name(name);
  const std::string whose = tensors.what + ": tensor " + printable(name);
  const auto line = tensors.metadata.find(name);
  if (line == tensors.metadata.end()) throw Error(whose + " has no line of metadata");
  const json info = parse_strict_json(line->second, whose + ": metadata");
  const json& type = member(info, "_type", whose);
  if (type == "Tensor") {
    if (name == kPositionScale) return;  // read with its codes
    if (name == kPositionCodes)
      return add_weight(tensors.checkpoint, kPositionTable, read_position_table(tensors), whose);
    // Transformers lists the head where it is tied, and saves it once, as the embedding.
    if (model_name == kTiedHead && !tensors.by_name.contains(name)) return;
    const auto& [entry, file] = tensors.take(name);
    return add_plain(tensors.checkpoint, model_name, entry, file, tensors.what);
  }
  if (type != "Int4Tensor" && type != "IntxUnpackedToInt8Tensor" && type != "Int8Tensor") {
    throw Error(whose + " is stored as " + printable(type.dump()) +
                ", which is not read (Tensor, Int4Tensor, Int8Tensor and IntxUnpackedToInt8Tensor are)");
  }
  if (name.find('.') == std::string::npos) throw Error(whose + ": a quantised weight's name has a dot");
  if (!is_model_tensor(model_name)) throw Error(whose + " is not one that Gemma 4 has (text or vision)");
  const json& data = member(info, "_data", whose);
  const bool has_zero = has_zero_points(member(info, "_tensor_data_names", whose), type == "Int8Tensor", whose);
  if (type == "Int4Tensor") {
    add_weight(tensors.checkpoint, model_name, read_int4(tensors, name, data, whose), whose);
  } else if (type == "IntxUnpackedToInt8Tensor") {
    add_weight(tensors.checkpoint, model_name, read_intx(tensors, name, data, whose), whose);
  } else {
    add_weight(tensors.checkpoint, model_name, read_int8_tensor(tensors, name, data, has_zero, whose), whose);
  }
}

}  // namespace

bool is_torchao(const Safetensors& file) { return file.metadata.contains(kTensorNames); }

void add_torchao(Checkpoint& checkpoint, std::span<const Safetensors> files, const std::string& what) {
  const auto& metadata = files[0].metadata;
  PhysicalTensors tensors{checkpoint, metadata, what, {}, {}};
  for (const Safetensors& file : files) {
    if (file.metadata != metadata) throw Error(what + ": its shards have different metadata");
    for (const SafetensorsEntry& entry : file.entries) {
      if (!tensors.by_name.emplace(entry.name, PhysicalTensor{entry, file}).second) {
        throw Error(what + ": the tensor " + printable(entry.name) + " lies in two shards");
      }
    }
  }
  const json names = parse_strict_json(metadata.at(kTensorNames), what + ": tensor_names");
  if (!names.is_array()) throw Error(what + ": tensor_names is not a list");
  for (const json& name : names) {
    if (!name.is_string()) throw Error(what + ": tensor_names holds something that is not a name");
    add_logical(tensors, name.get<std::string>());
  }
  for (const auto& [name, tensor] : tensors.by_name) {
    if (!tensors.used.contains(name)) {
      throw Error(what + ": the tensor " + printable(name) + " belongs to no weight that tensor_names lists");
    }
  }
}

std::string torchao_tensor(const std::string& name, const std::string& field) {
  const size_t dot = name.rfind('.');
  CHECK(dot != std::string::npos);
  return name.substr(0, dot) + "._" + name.substr(dot + 1) + "_" + field;
}

std::string torchao_plain_metadata() { return R"({"_type": "Tensor"})"; }

std::string torchao_int4_metadata(int64_t rows, int64_t cols, int64_t group) {
  return R"({"_type": "Int4Tensor", "_data": {"activation_dtype": {"_type": "torch.dtype", "_data": "bfloat16"}, )"
         R"("block_size": [1, )" +
         std::to_string(group) + R"(], "shape": [)" + std::to_string(rows) + ", " + std::to_string(cols) +
         R"(]}, "_tensor_data_names": ["qdata", "scale", "zero_point"]})";
}

std::string torchao_int8_metadata(int64_t group) {
  return R"({"_type": "IntxUnpackedToInt8Tensor", "_data": {)"
         R"("target_dtype": {"_type": "torch.dtype", "_data": "int8"}, "block_size": [1, )" +
         std::to_string(group) +
         R"(], "dtype": {"_type": "torch.dtype", "_data": "bfloat16"}, "activation_quantization": null}, )"
         R"("_tensor_data_names": ["qdata", "scale", "zero_point"]})";
}

std::string torchao_names_metadata(const std::vector<std::string>& names) {
  std::string text = "[";
  for (size_t i = 0; i < names.size(); ++i) text += (i ? ", \"" : "\"") + names[i] + "\"";
  return text + "]";
}

}  // namespace gemma4
