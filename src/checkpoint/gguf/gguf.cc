#include "checkpoint/gguf/gguf.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>

#include "base/bytes.h"
#include "base/check.h"
#include "base/json_text.h"

namespace gemma4 {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr uint64_t kKeyMax = 1024;          // bytes of a metadata key
constexpr uint64_t kNameMax = 255;          // bytes of a tensor's name; ggml's own limit is 63
constexpr uint64_t kStringMax = 100 << 20;  // bytes of a string; a whole tokenizer.json fits
constexpr int64_t kAlignmentMax = 1 << 20;

// ggml_type of ggml.h
struct TypeNumber {
  uint32_t number;
  Format format;
};
constexpr TypeNumber kTypes[] = {{0, Format::kF32},   {1, Format::kF16},   {2, Format::kQ4_0},  {3, Format::kQ4_1},
                                 {6, Format::kQ5_0},  {7, Format::kQ5_1},  {8, Format::kQ8_0},  {10, Format::kQ2_K},
                                 {11, Format::kQ3_K}, {12, Format::kQ4_K}, {13, Format::kQ5_K}, {14, Format::kQ6_K},
                                 {30, Format::kBF16}};

// Types that no model's weights have, or that are too new: named in the refusal.
constexpr std::pair<uint32_t, std::string_view> kOtherTypes[] = {
    {9, "Q8_1"}, {15, "Q8_K"}, {24, "I8"},       {25, "I16"},      {26, "I32"},
    {27, "I64"}, {28, "F64"},  {31, "Q4_0_4_4"}, {32, "Q4_0_4_8"}, {33, "Q4_0_8_8"}};

std::string type_name(uint32_t number) {
  for (const auto& [other, name] : kOtherTypes) {
    if (other == number) return "the type " + std::string(name);
  }
  return "ggml's type " + std::to_string(number) + ", which is newer than this program";
}

// Bytes of a number; 0 for strings, arrays and unknown types.
uint64_t number_size(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    default:
      return 0;
  }
}

template <typename T>
T load(std::span<const std::byte> bytes, uint64_t index = 0) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

std::string_view read_string(Reader& in, uint64_t longest) {
  const uint64_t length = in.read<uint64_t>();
  if (length > longest) {
    throw Error(in.what() + ": a string in it claims " + std::to_string(length) + " bytes; the file is damaged");
  }
  return in.take_string(length);
}

GgufValue read_array(Reader& in, const std::string& whose) {
  GgufValue value;
  value.type = GgufType::kArray;
  value.element = static_cast<GgufType>(in.read<uint32_t>());
  value.count = in.read<uint64_t>();
  if (value.element == GgufType::kString) {
    if (value.count > in.remaining() / sizeof(uint64_t))
      throw Error(whose + " claims more strings than the file holds");
    value.strings.reserve(value.count);
    for (uint64_t i = 0; i < value.count; ++i) value.strings.push_back(read_string(in, kStringMax));
    return value;
  }
  const uint64_t size = number_size(value.element);
  if (size == 0) throw Error(whose + " is an array of a type that is not read");
  if (value.count > in.remaining() / size) throw Error(whose + " claims more elements than the file holds");
  value.bytes = in.take(value.count * size);
  return value;
}

GgufValue read_value(Reader& in, const std::string& whose) {
  GgufValue value;
  value.type = static_cast<GgufType>(in.read<uint32_t>());
  if (value.type == GgufType::kArray) return read_array(in, whose);
  if (value.type == GgufType::kString) {
    value.text = read_string(in, kStringMax);
    return value;
  }
  const uint64_t size = number_size(value.type);
  if (size == 0) throw Error(whose + " has a type that GGUF does not define");
  value.bytes = in.take(size);
  return value;
}

// Offset and size of a tensor in the data section, whose start is not yet known.
struct TensorLocation {
  uint64_t offset, size;
};

GgufTensor read_tensor(Reader& in, const std::string& what, TensorLocation* location) {
  GgufTensor tensor;
  tensor.name = read_string(in, kNameMax);
  const std::string whose = what + ": tensor " + printable(tensor.name);
  const uint32_t rank = in.read<uint32_t>();
  if (rank < 1 || rank > 4) throw Error(whose + " has " + std::to_string(rank) + " dimensions; 1 to 4 are read");
  int64_t elements = 1;
  for (uint32_t i = 0; i < rank; ++i) {
    const uint64_t size = in.read<uint64_t>();
    if (size == 0 || size > static_cast<uint64_t>(INT64_MAX)) throw Error(whose + " has a dimension of no valid size");
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
    elements = checked_mul(elements, static_cast<int64_t>(size), whose);
  }
  const uint32_t type = in.read<uint32_t>();
  tensor.format = format_of_ggml_type(type);
  tensor.codebook = codebook_of_ggml_type(type);
  if (tensor.format == Format::kNone && tensor.codebook == nullptr) {
    throw Error(whose + " has " + type_name(type) +
                "; F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K, IQ1 to IQ4, TQ1_0, TQ2_0, MXFP4 and NVFP4 are read "
                "(llama-quantize --allow-requantize makes one of these of it)");
  }
  const bool plain = tensor.codebook == nullptr;
  const int block_cols = plain ? info(tensor.format).block_cols : tensor.codebook->block_cols;
  const int block_bytes = plain ? info(tensor.format).block_bytes : tensor.codebook->block_bytes;
  if (tensor.shape.back() % block_cols != 0) {
    throw Error(whose + ": rows of " + std::to_string(tensor.shape.back()) + " are not whole " +
                std::string(plain ? info(tensor.format).name : tensor.codebook->name) + " blocks");
  }
  location->size = static_cast<uint64_t>(checked_mul(elements / block_cols, block_bytes, whose));
  location->offset = in.read<uint64_t>();
  return tensor;
}

// Points every tensor at its bytes. Checks that they are inside the data section, aligned and do not overlap.
void locate_tensors(Gguf& gguf, const std::vector<TensorLocation>& locations, std::span<const std::byte> data,
                    uint64_t alignment) {
  std::vector<size_t> order(locations.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return locations[a].offset < locations[b].offset; });
  uint64_t end = 0;
  for (const size_t i : order) {
    const TensorLocation& location = locations[i];
    const std::string whose = gguf.what + ": tensor " + printable(gguf.tensors[i].name);
    if (location.offset > data.size() || location.size > data.size() - location.offset) {
      throw Error(whose + " reaches past the end of the file; the file is cut short or damaged");
    }
    if (location.offset % alignment != 0) throw Error(whose + " is not aligned to " + std::to_string(alignment));
    if (location.offset < end) throw Error(whose + " overlaps another one");
    end = location.offset + location.size;
    gguf.tensors[i].data = data.subspan(location.offset, location.size);
  }
}

void check_header(Reader& in, Gguf& gguf) {
  if (in.remaining() < kMagic.size() || in.take_string(kMagic.size()) != kMagic) {
    throw Error(gguf.what + " is no GGUF file");
  }
  gguf.version = in.read<uint32_t>();
  if (gguf.version == 2 || gguf.version == 3) return;
  const uint32_t swapped = __builtin_bswap32(gguf.version);
  if (swapped == 2 || swapped == 3) throw Error(gguf.what + " is a big-endian GGUF file; those are not read");
  throw Error(gguf.what + " is GGUF version " + std::to_string(gguf.version) + "; 2 and 3 are read");
}

int64_t integer_of(const GgufValue& value, const std::string& whose) {
  switch (value.type) {
    case GgufType::kU8:
    case GgufType::kBool:
      return load<uint8_t>(value.bytes);
    case GgufType::kI8:
      return load<int8_t>(value.bytes);
    case GgufType::kU16:
      return load<uint16_t>(value.bytes);
    case GgufType::kI16:
      return load<int16_t>(value.bytes);
    case GgufType::kU32:
      return load<uint32_t>(value.bytes);
    case GgufType::kI32:
      return load<int32_t>(value.bytes);
    case GgufType::kI64:
      return load<int64_t>(value.bytes);
    case GgufType::kU64: {
      const uint64_t v = load<uint64_t>(value.bytes);
      if (v > static_cast<uint64_t>(INT64_MAX)) throw Error(whose + " is out of range");
      return static_cast<int64_t>(v);
    }
    default:
      throw Error(whose + " is not an integer");
  }
}

double real_of(const GgufValue& value, const std::string& whose) {
  double v;
  if (value.type == GgufType::kF32) {
    v = load<float>(value.bytes);
  } else if (value.type == GgufType::kF64) {
    v = load<double>(value.bytes);
  } else {
    return static_cast<double>(integer_of(value, whose));
  }
  if (!std::isfinite(v)) throw Error(whose + " is not a finite number");
  return v;
}

std::string whose_key(const Gguf& gguf, std::string_view key) { return gguf.what + ": " + printable(key); }

const GgufValue& required(const Gguf& gguf, std::string_view key) {
  const GgufValue* value = gguf.find(key);
  if (value == nullptr) throw Error(gguf.what + " lacks the metadata key " + printable(key));
  return *value;
}

}  // namespace

bool is_gguf(std::span<const std::byte> file) {
  return file.size() >= kMagic.size() && std::memcmp(file.data(), kMagic.data(), kMagic.size()) == 0;
}

uint32_t ggml_type(Format format) {
  for (const TypeNumber& row : kTypes) {
    if (row.format == format) return row.number;
  }
  throw Error("GGUF has no type for " + std::string(info(format).name));
}

Format format_of_ggml_type(uint32_t type) {
  for (const TypeNumber& row : kTypes) {
    if (row.number == type) return row.format;
  }
  return Format::kNone;
}

Gguf parse_gguf(std::span<const std::byte> file, const std::string& what) {
  Gguf gguf;
  gguf.what = what;
  Reader in(file, what);
  check_header(in, gguf);
  const uint64_t tensors = in.read<uint64_t>(), keys = in.read<uint64_t>();
  // A key takes at least 8 + 4 + 1 bytes, a tensor 8 + 4 + 8 + 4 + 8. Refuses counts that cannot fit in the file.
  if (keys > in.remaining() / 13) throw Error(what + " claims more metadata than the file holds");
  if (tensors > in.remaining() / 32) throw Error(what + " claims more tensors than the file holds");
  for (uint64_t i = 0; i < keys; ++i) {
    const std::string key(read_string(in, kKeyMax));
    const std::string whose = whose_key(gguf, key);
    if (!gguf.metadata.emplace(key, read_value(in, whose)).second) throw Error(whose + " appears twice");
  }
  std::vector<TensorLocation> locations(tensors);
  std::set<std::string_view> names;
  gguf.tensors.reserve(tensors);
  for (uint64_t i = 0; i < tensors; ++i) {
    gguf.tensors.push_back(read_tensor(in, what, &locations[i]));
    const std::string& name = gguf.tensors.back().name;
    if (!names.insert(name).second) throw Error(what + ": tensor " + printable(name) + " appears twice");
  }
  const int64_t alignment = gguf.integer("general.alignment", 32);
  if (alignment < 8 || alignment > kAlignmentMax || !std::has_single_bit(static_cast<uint64_t>(alignment))) {
    throw Error(what + ": its alignment of " + std::to_string(alignment) + " is not a power of two from 8");
  }
  const uint64_t step = static_cast<uint64_t>(alignment);
  const uint64_t start = std::min<uint64_t>(file.size(), (in.position() + step - 1) / step * step);
  locate_tensors(gguf, locations, file.subspan(start), step);
  return gguf;
}

const GgufValue* Gguf::find(std::string_view key) const {
  const auto it = metadata.find(key);
  return it == metadata.end() ? nullptr : &it->second;
}

const GgufTensor* Gguf::tensor(std::string_view name) const {
  const auto it = std::find_if(tensors.begin(), tensors.end(), [&](const GgufTensor& t) { return t.name == name; });
  return it == tensors.end() ? nullptr : &*it;
}

int64_t Gguf::integer(std::string_view key) const { return integer_of(required(*this, key), whose_key(*this, key)); }

int64_t Gguf::integer(std::string_view key, int64_t fallback) const { return find(key) ? integer(key) : fallback; }

double Gguf::real(std::string_view key) const { return real_of(required(*this, key), whose_key(*this, key)); }

double Gguf::real(std::string_view key, double fallback) const { return find(key) ? real(key) : fallback; }

bool Gguf::boolean(std::string_view key, bool fallback) const { return integer(key, fallback) != 0; }

std::string_view Gguf::string(std::string_view key) const {
  const GgufValue& value = required(*this, key);
  if (value.type != GgufType::kString) throw Error(whose_key(*this, key) + " is not a string");
  return value.text;
}

std::string_view Gguf::string(std::string_view key, std::string_view fallback) const {
  return find(key) ? string(key) : fallback;
}

std::vector<int64_t> Gguf::integers(std::string_view key) const {
  const GgufValue& value = required(*this, key);
  const std::string whose = whose_key(*this, key);
  const uint64_t size = value.type == GgufType::kArray ? number_size(value.element) : 0;
  if (size == 0) throw Error(whose + " is not an array of integers");
  std::vector<int64_t> numbers(value.count);
  for (uint64_t i = 0; i < value.count; ++i) {
    GgufValue one;
    one.type = value.element;
    one.bytes = value.bytes.subspan(i * size, size);
    numbers[i] = integer_of(one, whose);
  }
  return numbers;
}

std::vector<float> Gguf::floats(std::string_view key) const {
  const GgufValue& value = required(*this, key);
  if (value.type != GgufType::kArray || value.element != GgufType::kF32) {
    throw Error(whose_key(*this, key) + " is not an array of floats");
  }
  std::vector<float> numbers(value.count);
  if (value.count) std::memcpy(numbers.data(), value.bytes.data(), value.bytes.size());
  return numbers;
}

const std::vector<std::string_view>& Gguf::strings(std::string_view key) const {
  const GgufValue& value = required(*this, key);
  if (value.type != GgufType::kArray || value.element != GgufType::kString) {
    throw Error(whose_key(*this, key) + " is not an array of strings");
  }
  return value.strings;
}

}  // namespace gemma4
