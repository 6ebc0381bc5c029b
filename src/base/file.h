// Files: read whole, and written so that a half-written file never stands under its final name, no file is replaced
// unless that was asked for, and two writers never mix. Mapping: base/mapped_file.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace gemma4 {

// Throws Error, also where the file is larger than `most` bytes, and for what is no regular file: a pipe may wait for
// ever and a device may have no end.
std::string read_file(const std::filesystem::path& path, uint64_t most = UINT64_MAX);

// The same, but waits for a pipe, such as a shell's <(command). For what people write: prompts, tools, keys.
std::string read_file_or_pipe(const std::filesystem::path& path, uint64_t most = uint64_t{64} << 20);

// May a file that exists be replaced? Commands replace only with --force.
enum class Overwrite { kRefuse, kReplace };
inline Overwrite overwrite_if(bool force) { return force ? Overwrite::kReplace : Overwrite::kRefuse; }

// Throws Error where `path` may not be written: it exists (a link counts, wherever it points), or is a folder or a
// device, which are never replaced, or there is no folder to hold it.
void check_output_file(const std::filesystem::path& path, Overwrite overwrite);

// Writes to a partial file of a new name, `path` + ".abc123.partial" (random), which is locked while it is written.
// commit() flushes to disk and renames. Destroyed before commit(), it removes the partial file; what killed processes
// left of the same `path` is removed too. Every failure (a full disk, a missing folder) is an Error that names the
// path.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path, Overwrite overwrite = Overwrite::kRefuse);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t size);                      // appends
  void write_at(uint64_t offset, const void* data, size_t size);  // any order, any thread
  void commit();

 private:
  void create();
  std::filesystem::path path_, partial_;
  Overwrite overwrite_;
  int fd_ = -1;
  uint64_t end_ = 0;
};

// Atomically.
void write_file(const std::filesystem::path& path, std::string_view bytes, Overwrite overwrite = Overwrite::kReplace);

// The directory that a command writes its result into: created if need be, locked against other processes while this
// object lives, and, with kRefuse, empty (but for what killed processes left). The lock is the kernel's, so nothing of
// it stays behind. If no file was written, a directory that was created here is removed. Throws Error.
class OutputDirectory {
 public:
  OutputDirectory(const std::filesystem::path& path, Overwrite overwrite);
  ~OutputDirectory();
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;

 private:
  std::filesystem::path path_;
  bool created_ = false;
  int fd_ = -1;
};

}  // namespace gemma4
