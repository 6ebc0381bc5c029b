#include "base/descriptor.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/check.h"

namespace gemma4 {

void throw_errno(const std::filesystem::path& path, const char* doing) {
  throw Error("cannot " + std::string(doing) + " " + path.string() + ": " + std::strerror(errno));
}

Descriptor::Descriptor(const std::filesystem::path& path, bool pipes) {
  // O_NONBLOCK: a pipe that nobody writes to would wait here for ever.
  number_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | (pipes ? 0 : O_NONBLOCK));
  if (number_ < 0) throw_errno(path, "open");
  struct stat info {};
  if (::fstat(number_, &info) != 0) info.st_mode = 0;
  const char* wrong = S_ISDIR(info.st_mode)            ? "it is a directory"
                      : pipes || S_ISREG(info.st_mode) ? nullptr
                                                       : "it is not a regular file";
  if (wrong != nullptr) {
    ::close(number_);
    throw Error("cannot read " + path.string() + ": " + wrong);
  }
  size_ = S_ISREG(info.st_mode) ? static_cast<uint64_t>(info.st_size) : 0;
}

Descriptor::~Descriptor() { ::close(number_); }

}  // namespace gemma4
