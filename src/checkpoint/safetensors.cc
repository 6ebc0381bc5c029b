#include "checkpoint/safetensors.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>

#include "base/bytes.h"
#include "base/check.h"
#include "base/json.h"
#include "base/json_text.h"

namespace gemma4 {
namespace {

using nlohmann::json;

constexpr int kRankMax = 8;
constexpr const char* kMetadata = "__metadata__";

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kI8,
                            DType::kU8,  DType::kI32,  DType::kU32, DType::kI64};

std::optional<DType> dtype_of(const std::string& name) {
  for (DType type : kTypes) {
    if (name == dtype_name(type)) return type;
  }
  return std::nullopt;
}

int64_t size_of(const json& value, const std::string& what) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    throw Error(what + " is not a whole number of at most 63 bits");
  }
  return value.get<int64_t>();
}

SafetensorsEntry parse_entry(const std::string& name, const json& value, const std::string& what) {
  const std::string whose = what + ": tensor " + printable(name);
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets")) {
    throw Error(whose + " needs exactly dtype, shape and data_offsets");
  }
  SafetensorsEntry entry{.name = name};
  const json& type = value["dtype"];
  if (!type.is_string()) throw Error(whose + ": dtype is not a string");
  const auto dtype = dtype_of(type.get<std::string>());
  if (!dtype)
    throw Error(whose + " has the element type " + printable(type.get<std::string>()) + ", which is not read");
  entry.dtype = *dtype;
  const json& shape = value["shape"];
  if (!shape.is_array() || shape.size() > kRankMax) throw Error(whose + ": shape is not a list of at most 8 sizes");
  int64_t bytes = static_cast<int64_t>(dtype_size(*dtype));
  for (const json& dim : shape) {
    entry.shape.push_back(size_of(dim, whose + ": a size in its shape"));
    bytes = checked_mul(bytes, entry.shape.back(), whose);
  }
  const json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2) throw Error(whose + ": data_offsets is not a pair");
  entry.begin = static_cast<uint64_t>(size_of(offsets[0], whose + ": an offset"));
  entry.end = static_cast<uint64_t>(size_of(offsets[1], whose + ": an offset"));
  if (entry.end < entry.begin || entry.end - entry.begin != static_cast<uint64_t>(bytes)) {
    throw Error(whose + ": its shape needs " + std::to_string(bytes) + " bytes but its offsets are " +
                std::to_string(entry.begin) + " to " + std::to_string(entry.end));
  }
  return entry;
}

std::map<std::string, std::string> parse_metadata(const json& value, const std::string& what) {
  std::map<std::string, std::string> metadata;
  if (value.is_null()) return metadata;  // as MLX writes it where there is none
  if (!value.is_object()) throw Error(what + ": __metadata__ is not an object");
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) throw Error(what + ": __metadata__ entry " + printable(key) + " is not a string");
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

void check_tiling(const Safetensors& file, const std::string& what) {
  uint64_t at = 0;
  for (const SafetensorsEntry& entry : file.entries) {
    if (entry.begin != at) {
      throw Error(what + ": tensor " + printable(entry.name) + " begins at byte " + std::to_string(entry.begin) +
                  " of the data where byte " + std::to_string(at) + " was due: tensors overlap or leave a gap");
    }
    at = entry.end;
  }
  if (at != file.data.size()) {
    throw Error(what + ": its tensors need " + std::to_string(at) + " bytes of data but the file holds " +
                std::to_string(file.data.size()) + "; it is cut short or damaged");
  }
}

}  // namespace

Safetensors parse_safetensors(std::span<const std::byte> file, const std::string& what) {
  Reader reader(file, what);
  const auto length = reader.read<uint64_t>();
  if (length > kSafetensorsHeaderMax) {
    throw Error(what + ": its header claims " + std::to_string(length) + " bytes, more than the limit of " +
                std::to_string(kSafetensorsHeaderMax) + "; it is not a safetensors file or damaged");
  }
  const json header = parse_strict_json(reader.take_string(length), what + ": header");
  if (!header.is_object()) throw Error(what + ": its header is not a JSON object");
  Safetensors result;
  result.data = file.subspan(reader.position());
  for (const auto& [name, value] : header.items()) {
    if (name == kMetadata) {
      result.metadata = parse_metadata(value, what);
    } else {
      result.entries.push_back(parse_entry(name, value, what));
    }
  }
  std::sort(result.entries.begin(), result.entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  check_tiling(result, what);
  return result;
}

namespace {

// The order of the safetensors library's own writer: types with the widest alignment first (its serialize()).
int rank(DType type) {
  switch (type) {
    case DType::kI64:
      return 0;
    case DType::kF32:
      return 1;
    case DType::kI32:
    case DType::kU32:
      return 2;
    case DType::kBF16:
      return 3;
    case DType::kF16:
      return 4;
    case DType::kI8:
      return 5;
    case DType::kU8:
      return 6;
  }
  return 7;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<SafetensorsEntry> entries,
                                     const std::map<std::string, std::string>& metadata, Overwrite overwrite)
    : file_(path, overwrite) {
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return rank(a.dtype) != rank(b.dtype) ? rank(a.dtype) < rank(b.dtype) : a.name < b.name;
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  for (SafetensorsEntry& entry : entries) {
    int64_t bytes = static_cast<int64_t>(dtype_size(entry.dtype));
    for (int64_t dim : entry.shape) bytes = checked_mul(bytes, dim, entry.name);
    entry.begin = data_bytes_;
    entry.end = data_bytes_ += static_cast<uint64_t>(bytes);
    header[entry.name] = {
        {"dtype", dtype_name(entry.dtype)}, {"shape", entry.shape}, {"data_offsets", {entry.begin, entry.end}}};
    CHECK(extents_.emplace(entry.name, Extent{entry.begin, static_cast<uint64_t>(bytes), 0}).second);
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kSafetensorsHeaderMax) throw Error(path.string() + ": its header would be over the limit");
  const uint64_t length = text.size();
  file_.write(&length, sizeof length);
  file_.write(text.data(), text.size());
  data_begin_ = sizeof length + length;
}

void SafetensorsWriter::write(const std::string& name, uint64_t offset, const void* data, uint64_t size) {
  const auto it = extents_.find(name);
  CHECK(it != extents_.end() && offset <= it->second.size && size <= it->second.size - offset);
  file_.write_at(data_begin_ + it->second.begin + offset, data, size);
  std::atomic_ref<uint64_t>(it->second.written).fetch_add(size);
}

void SafetensorsWriter::commit() {
  for (const auto& [name, extent] : extents_) CHECK(extent.written == extent.size);
  file_.commit();
}

}  // namespace gemma4
