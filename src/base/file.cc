#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace gemma4 {
namespace {

[[noreturn]] void throw_errno(const std::filesystem::path& path, const char* doing) {
  throw Error("cannot " + std::string(doing) + " " + path.string() + ": " + std::strerror(errno));
}

// A file that is open for reading: a regular one, or, with `pipes`, one that may wait for who writes it.
class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, bool pipes) {
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
  ~Descriptor() { ::close(number_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int number() const { return number_; }
  uint64_t size() const { return size_; }  // 0 also where it is not known, as of a pipe and in /proc

 private:
  int number_;
  uint64_t size_;
};

std::string read_all(const std::filesystem::path& path, uint64_t most, bool pipes) {
  const Descriptor fd(path, pipes);
  const auto check = [&](uint64_t size) {
    if (size <= most) return;
    throw Error("cannot read " + path.string() + ": it is larger than " + std::to_string(most) + " bytes");
  };
  check(fd.size());
  std::string text;
  for (size_t end = 0;; check(end)) {
    text.resize(std::max<size_t>({fd.size() + 1, end + end / 2, size_t{1} << 16}));
    const ssize_t got = ::read(fd.number(), text.data() + end, text.size() - end);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno(path, "read");
    end += static_cast<size_t>(got);
    if (got == 0) return text.resize(end), text;
  }
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const Descriptor fd(path, false);
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  file->size_ = fd.size();
  if (file->size_ > 0) {
    void* data = ::mmap(nullptr, file->size_, PROT_READ, MAP_SHARED, fd.number(), 0);
    if (data == MAP_FAILED) throw_errno(path, "map");
    file->data_ = static_cast<const std::byte*>(data);
  }
  return file;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

void forget_pages(const void* data, size_t size) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + size) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

std::string read_file(const std::filesystem::path& path, uint64_t most) { return read_all(path, most, false); }

std::string read_file_or_pipe(const std::filesystem::path& path, uint64_t most) { return read_all(path, most, true); }

AtomicFile::AtomicFile(const std::filesystem::path& path) : path_(path), partial_(path.string() + ".partial") {
  fd_ = ::open(partial_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) throw_errno(partial_, "create");
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(partial_.c_str());
}

void AtomicFile::write(const void* data, size_t size) {
  write_at(end_, data, size);
  end_ += size;
}

void AtomicFile::write_at(uint64_t offset, const void* data, size_t size) {
  const char* from = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::pwrite(fd_, from, size, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_errno(partial_, "write");
    from += written, offset += static_cast<uint64_t>(written), size -= static_cast<size_t>(written);
  }
}

void AtomicFile::commit() {
  if (::fsync(fd_) != 0) throw_errno(partial_, "write");
  if (::close(std::exchange(fd_, -1)) != 0) throw_errno(partial_, "write");
  if (::rename(partial_.c_str(), path_.c_str()) != 0) throw_errno(path_, "write");
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes.data(), bytes.size());
  file.commit();
}

}  // namespace gemma4
