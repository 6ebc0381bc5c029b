// Descriptor: a file that is open for reading. For base/file.cc and base/mapped_file.cc, which share its checks.
#pragma once

#include <cstdint>
#include <filesystem>

namespace gemma4 {

// Throws Error: "cannot DOING PATH: " and what errno says.
[[noreturn]] void throw_errno(const std::filesystem::path& path, const char* doing);

// A regular file, or, with `pipes`, also one that may wait for who writes it. Throws Error.
class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, bool pipes);
  ~Descriptor();
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int number() const { return number_; }
  uint64_t size() const { return size_; }  // when opened; 0 where it is not known, as of a pipe and in /proc

 private:
  int number_;
  uint64_t size_;
};

}  // namespace gemma4
