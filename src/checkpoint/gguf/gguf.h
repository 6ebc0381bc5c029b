// GGUF: the typed metadata and the tensors of a .gguf file, as views into the mapped file. The parser checks every
// count, length and offset against the file before it allocates or reads anything. Versions 2 and 3,
// little-endian. Format: ggml's docs/gguf.md; docs/FORMATS.md.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quant/codebook.h"
#include "quant/format.h"

namespace gemma4 {

enum class GgufType : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

// One value of the metadata. Numbers are read through the accessors of Gguf, which accept any type that holds the
// value.
struct GgufValue {
  GgufType type = GgufType::kU8;
  std::span<const std::byte> bytes;       // a number, or an array of numbers, as stored
  std::string_view text;                  // kString
  GgufType element = GgufType::kU8;       // of an array
  uint64_t count = 0;                     // of an array
  std::vector<std::string_view> strings;  // an array of strings
};

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;  // outermost first, as in PyTorch (the file has the reverse order)
  Format format = Format::kNone;
  const CodebookType* codebook = nullptr;  // the type where `format` is kNone
  std::span<const std::byte> data;
};

class Gguf {
 public:
  std::string what;  // names the file in errors
  uint32_t version = 0;
  std::map<std::string, GgufValue, std::less<>> metadata;
  std::vector<GgufTensor> tensors;  // in the order of the file

  const GgufValue* find(std::string_view key) const;
  const GgufTensor* tensor(std::string_view name) const;

  // The value of a key; the second form gives `fallback` where the key is absent. Throws Error: absent, another type,
  // out of range.
  int64_t integer(std::string_view key) const;
  int64_t integer(std::string_view key, int64_t fallback) const;
  double real(std::string_view key) const;
  double real(std::string_view key, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string_view string(std::string_view key) const;
  std::string_view string(std::string_view key, std::string_view fallback) const;
  std::vector<int64_t> integers(std::string_view key) const;  // an array of integers or booleans
  std::vector<float> floats(std::string_view key) const;      // an array of F32
  const std::vector<std::string_view>& strings(std::string_view key) const;
};

// The result points into `file`. `what` names the file in errors. Throws Error.
Gguf parse_gguf(std::span<const std::byte> file, const std::string& what);

bool is_gguf(std::span<const std::byte> file);

// ggml's number of a format, and the reverse (kNone for formats that we do not read).
uint32_t ggml_type(Format format);
Format format_of_ggml_type(uint32_t type);

}  // namespace gemma4
