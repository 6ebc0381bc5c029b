// The safetensors container: u64 header length, a JSON header, the tensors' bytes. Reading checks everything that the
// header claims against the file before anything is allocated or read; writing streams tensor by tensor.
// Format: github.com/huggingface/safetensors README; docs/FORMATS.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/file.h"

namespace gemma4 {

constexpr uint64_t kSafetensorsHeaderMax = 100'000'000;  // bytes; the format's own limit

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes, from the start of the data section
};

struct Safetensors {
  std::vector<SafetensorsEntry> entries;        // by offset: they tile the data section
  std::map<std::string, std::string> metadata;  // "__metadata__"
  std::span<const std::byte> data;              // the data section
};

// `what` names the file in errors. The result points into `file`. Throws Error.
Safetensors parse_safetensors(std::span<const std::byte> file, const std::string& what);

// Writes one file: describe every tensor, then fill them in any order and from any thread. The order in the file is
// that of the safetensors library: wider types first (F32, BF16, I8, U8 in our files), then names in byte order.
class SafetensorsWriter {
 public:
  // `entries` need name, dtype and shape; begin and end are worked out here.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<SafetensorsEntry> entries,
                    const std::map<std::string, std::string>& metadata, Overwrite overwrite = Overwrite::kRefuse);

  // Writes `size` bytes of tensor `name`, from byte `offset` of it.
  void write(const std::string& name, uint64_t offset, const void* data, uint64_t size);

  // Throws Error where a byte of a tensor was never written (counted, not mapped).
  void commit();

  uint64_t data_bytes() const { return data_bytes_; }

 private:
  struct Extent {
    uint64_t begin, size, written;
  };
  AtomicFile file_;
  std::map<std::string, Extent> extents_;
  uint64_t data_begin_ = 0, data_bytes_ = 0;
};

}  // namespace gemma4
