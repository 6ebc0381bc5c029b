// Mapped files: whole files in memory, read-only. A mapping shows what is done to its file later, so a file that is cut
// short or written in place is noticed: check_mapped_files() compares, and SIGBUS (a page that can no longer be read)
// is handled. A file that is replaced by renaming another over it does no harm: the mapping keeps the old one.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

#include "base/descriptor.h"

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

  bool changed() const;  // since it was opened: size or time of modification

 private:
  explicit MappedFile(const std::filesystem::path& path);
  const std::filesystem::path path_;
  const Descriptor file_;
  struct stat opened_ = {};
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  size_t slot_ = 0;  // of the table that the signal handler reads
};

// Throws DeviceError that names a file which is mapped now and has changed since it was opened, or which SIGBUS was
// about. One fstat() a file: before and after each pass of a model, and before a result made of mapped weights is kept.
void check_mapped_files();

// What SIGBUS inside a mapped file does.
enum class LostPages {
  kExit,   // prints one sentence and ends the process with kExitDevice
  kZeros,  // the file reads as zeros from then on, and check_mapped_files() throws: for who calls it after each pass
};

// Installs a handler for SIGBUS. Outside mapped files the signal does what it did before.
void handle_lost_pages(LostPages how);

// Tells the system that those of these bytes which belong to a MappedFile are not needed soon: they leave this
// process's memory and are read again from the file if touched. For passes over files larger than memory. Other memory
// keeps its values: on the heap the same call to the system would turn them to zeros.
void forget_pages(const void* data, size_t size);

}  // namespace gemma4
