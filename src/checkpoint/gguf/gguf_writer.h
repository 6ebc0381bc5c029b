// Writes GGUF version 3: describe metadata and tensors, then fill the tensors in any order and from any thread.
#pragma once

#include <atomic>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "checkpoint/gguf/gguf.h"

namespace gemma4 {

class GgufWriter {
 public:
  explicit GgufWriter(std::string architecture);

  void add_u32(const std::string& key, int64_t value);  // throws Error where it does not fit
  void add_f32(const std::string& key, double value);
  void add_bool(const std::string& key, bool value);
  void add_string(const std::string& key, const std::string& value);
  void add_u32s(const std::string& key, const std::vector<int64_t>& values);
  void add_i32s(const std::string& key, const std::vector<int32_t>& values);
  void add_f32s(const std::string& key, const std::vector<float>& values);
  void add_bools(const std::string& key, const std::vector<bool>& values);
  void add_strings(const std::string& key, const std::vector<std::string>& values);

  // `shape` outermost first.
  void add_tensor(const std::string& name, const std::vector<int64_t>& shape, Format format);

  // Writes everything but the tensors' bytes.
  void begin(const std::filesystem::path& path, Overwrite overwrite = Overwrite::kRefuse);
  void write(const std::string& name, uint64_t offset, const void* data, uint64_t size);
  void commit();  // throws Error where the disk is full, and CHECKs that every byte was written

  uint64_t data_bytes() const { return data_bytes_; }

 private:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
    Format format;
    uint64_t offset, size;
  };
  void key(const std::string& name, GgufType type);
  void array(const std::string& name, GgufType element, uint64_t count);
  std::string header() const;

  std::string metadata_;
  uint64_t keys_ = 0;
  std::vector<Tensor> tensors_;
  std::map<std::string, size_t> by_name_;
  uint64_t data_bytes_ = 0, data_begin_ = 0;
  std::atomic<uint64_t> written_ = 0;
  std::optional<AtomicFile> file_;
};

}  // namespace gemma4
