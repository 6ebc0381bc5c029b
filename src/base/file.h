// Files: mapped for reading, and written so that a half-written file never stands under its final name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace gemma4 {

// A read-only mapping of a whole file, shared by everything that points into it.
class MappedFile {
 public:
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);  // throws Error
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  MappedFile() = default;
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Tells the system that these bytes of a mapping are not needed soon: they leave this process's memory and are read
// again from the file if touched. For passes over files larger than memory.
void forget_pages(const void* data, size_t size);

// Throws Error, also where the file is larger than `most` bytes, and for what is no regular file: a pipe may wait for
// ever and a device may have no end.
std::string read_file(const std::filesystem::path& path, uint64_t most = UINT64_MAX);

// The same, but waits for a pipe, such as a shell's <(command). For what people write: prompts, tools, keys.
std::string read_file_or_pipe(const std::filesystem::path& path, uint64_t most = uint64_t{64} << 20);

// Writes to `path` + ".partial"; commit() flushes to disk and renames. Destroyed before commit(), it removes the
// partial file. Every failure (a full disk, a missing folder) is an Error that names the path.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t size);                      // appends
  void write_at(uint64_t offset, const void* data, size_t size);  // any order, any thread
  void commit();

 private:
  std::filesystem::path path_, partial_;
  int fd_ = -1;
  uint64_t end_ = 0;
};

void write_file(const std::filesystem::path& path, std::string_view bytes);  // atomically

}  // namespace gemma4
