#include "base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/descriptor.h"
#include "base/random.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPartial = ".partial";
constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz0123456789";
constexpr size_t kRandomLetters = 6;

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

std::string random_letters() {
  std::string letters;
  for (size_t i = 0; i < kRandomLetters; ++i) letters += kLetters[system_random() % kLetters.size()];
  return letters;
}

// Is `name` "FILE.abc123.partial"? An empty `file`: of any file.
bool is_partial(std::string_view name, std::string_view file) {
  constexpr size_t kEnd = 1 + kRandomLetters + kPartial.size();
  if (name.size() <= kEnd || !name.ends_with(kPartial)) return false;
  const std::string_view letters = name.substr(name.size() - kEnd + 1, kRandomLetters);
  return name[name.size() - kEnd] == '.' && letters.find_first_not_of(kLetters) == std::string_view::npos &&
         (file.empty() || name.substr(0, name.size() - kEnd) == file);
}

enum class Writer { kAlive, kGone, kUnknown };

// Of a partial file: its writer holds a lock on it. What a killed process left is removed if `remove`, before the lock
// that was taken to see this is released, so that a writer that has just created the file sees it gone (create()).
Writer writer_of(const fs::path& partial, bool remove) {
  const int fd = ::open(partial.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return Writer::kUnknown;
  struct stat info {};
  Writer writer = Writer::kUnknown;
  if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) {
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) {
      writer = Writer::kGone;
      if (remove) ::unlink(partial.c_str());
    } else if (errno == EWOULDBLOCK) {
      writer = Writer::kAlive;
    }
  }
  ::close(fd);
  return writer;
}

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator i(directory, error), end; !error && i != end; i.increment(error)) {
    names.push_back(i->path().filename().string());
  }
  if (error) throw Error("cannot read the directory " + directory.string() + ": " + error.message());
  return names;
}

// Removes what killed processes left of `path`. Throws Error where another process writes it now.
void clear_partials(const fs::path& path) {
  const fs::path directory = path.has_parent_path() ? path.parent_path() : fs::path(".");
  std::error_code ignored;
  if (!fs::is_directory(directory, ignored)) return;  // creating the file says what is wrong
  for (const std::string& name : names_in(directory)) {
    if (!is_partial(name, path.filename().string())) continue;
    if (writer_of(directory / name, true) == Writer::kAlive) {
      throw Error("another process is writing " + path.string());
    }
  }
}

int rename_to_new(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return -1;
  // A file system without that call, such as NFS.
  struct stat info {};
  if (::lstat(to.c_str(), &info) == 0) return errno = EEXIST, -1;
  return ::rename(from.c_str(), to.c_str());
}

[[noreturn]] void refuse_existing(const fs::path& path) {
  throw Error("the output " + path.string() + " exists already; choose another or replace it with --force");
}

}  // namespace

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

std::string read_file(const fs::path& path, uint64_t most) { return read_all(path, most, false); }

std::string read_file_or_pipe(const fs::path& path, uint64_t most) { return read_all(path, most, true); }

void check_output_file(const fs::path& path, Overwrite overwrite) {
  struct stat info {};
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  std::error_code ignored;
  if (!fs::exists(folder, ignored)) {
    throw Error("cannot write " + path.string() + ": the folder " + folder.string() + " does not exist");
  }
  if (!fs::is_directory(folder, ignored)) {
    throw Error("cannot write " + path.string() + ": " + folder.string() + " is not a folder");
  }
  if (::lstat(path.c_str(), &info) != 0) return;  // new; or creating it says what is wrong
  if (S_ISDIR(info.st_mode)) throw Error("the output " + path.string() + " is a directory");
  if (!S_ISREG(info.st_mode) && !S_ISLNK(info.st_mode)) {
    throw Error("the output " + path.string() + " is not a regular file");
  }
  if (overwrite == Overwrite::kRefuse) refuse_existing(path);
}

AtomicFile::AtomicFile(const fs::path& path, Overwrite overwrite) : path_(path), overwrite_(overwrite) {
  check_output_file(path, overwrite);
  clear_partials(path);
  create();
}

// Creates the partial file. It is new, so no link is followed and nobody else writes to it.
void AtomicFile::create() {
  while (true) {
    partial_ = path_.string() + "." + random_letters() + std::string(kPartial);
    fd_ = ::open(partial_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd_ < 0 && errno == EEXIST) continue;
    if (fd_ < 0) throw_errno(partial_, "create");
    while (::flock(fd_, LOCK_EX) != 0 && errno == EINTR) {  // without locks nobody takes the file for left behind
    }
    struct stat info {};
    if (::fstat(fd_, &info) != 0 || info.st_nlink > 0) return;
    ::close(fd_);  // another process took it for left behind, before it was locked
  }
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::unlink(partial_.c_str());
  ::close(fd_);
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
  const bool replace = overwrite_ == Overwrite::kReplace;
  if ((replace ? ::rename(partial_.c_str(), path_.c_str()) : rename_to_new(partial_, path_)) != 0) {
    if (errno == EEXIST) refuse_existing(path_);
    throw_errno(path_, "write");
  }
  if (::close(std::exchange(fd_, -1)) != 0) throw_errno(path_, "write");
}

void write_file(const fs::path& path, std::string_view bytes, Overwrite overwrite) {
  AtomicFile file(path, overwrite);
  file.write(bytes.data(), bytes.size());
  file.commit();
}

OutputDirectory::OutputDirectory(const fs::path& path, Overwrite overwrite) : path_(path) {
  std::error_code error;
  if (fs::exists(path, error) && !fs::is_directory(path, error)) {
    throw Error("the output " + path.string() + " is not a directory");
  }
  created_ = fs::create_directories(path, error);
  if (error) throw Error("cannot create the directory " + path.string() + ": " + error.message());
  fd_ = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd_ < 0) throw_errno(path, "open");
  try {
    // Other errors: the file system has no locks, or none on directories. Partial files have names of their own anyway.
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      created_ = false;
      throw Error("another process is writing to " + path.string() + "; choose another directory");
    }
    if (overwrite == Overwrite::kReplace) return;
    for (const std::string& name : names_in(path)) {
      if (is_partial(name, "") && writer_of(path / name, false) == Writer::kGone) continue;
      throw Error("the output directory " + path.string() + " is not empty (it holds " + name +
                  "); choose another or replace files in it with --force");
    }
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

OutputDirectory::~OutputDirectory() {
  std::error_code ignored;
  if (created_) fs::remove(path_, ignored);  // only where empty
  ::close(fd_);
}

}  // namespace gemma4
