#include "cli/terminal/history.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "base/check.h"
#include "base/file.h"

namespace gemma4 {
namespace {

constexpr uint64_t kFileBytesMax = uint64_t{64} << 20;

std::string escaped(const std::string& text) {
  std::string line;
  for (const char c : text) line += c == '\n' ? "\\n" : c == '\\' ? "\\\\" : std::string(1, c);
  return line + "\n";
}

std::string unescaped(const std::string& line) {
  std::string text;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] != '\\' || i + 1 == line.size()) {
      text += line[i];
      continue;
    }
    text += line[++i] == 'n' ? '\n' : line[i];
  }
  return text;
}

// Appends, or replaces the file where `flags` say so. Returns what failed, or "".
std::string store(const std::filesystem::path& file, const std::string& text, int flags) {
  const int fd = open(file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | flags, 0600);
  if (fd < 0) return std::strerror(errno);
  struct stat status = {};
  std::string failed;
  if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
    failed = "it is no regular file";
  } else {
    fchmod(fd, 0600);  // where an editor made it readable
    // One write, so that two chats do not mix their lines.
    if (write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size())) failed = std::strerror(errno);
  }
  close(fd);
  return failed;
}

}  // namespace

std::filesystem::path LineHistory::default_file() {
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && *state == '/') return std::filesystem::path(state) / "gemma4" / "history";
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home != '/') return {};
  return std::filesystem::path(home) / ".local" / "state" / "gemma4" / "history";
}

LineHistory::LineHistory(std::filesystem::path file) : file_(std::move(file)) {
  if (!file_.empty()) load();
}

void LineHistory::load() {
  std::error_code failed;
  if (!std::filesystem::exists(file_, failed)) return;
  try {
    std::istringstream lines(read_file(file_, kFileBytesMax));
    for (std::string line; std::getline(lines, line);) {
      if (!line.empty()) entries_.push_back(unescaped(line));
    }
  } catch (const Error& error) {
    problem_ = error.what();
    file_.clear();
    return;
  }
  // Rarely, so that two chats at a time seldom meet here.
  if (entries_.size() > 2 * kEntriesMax) rewrite();
  if (entries_.size() > kEntriesMax) entries_.erase(entries_.begin(), entries_.end() - kEntriesMax);
}

void LineHistory::rewrite() {
  std::string text;
  for (size_t i = entries_.size() - kEntriesMax; i < entries_.size(); ++i) text += escaped(entries_[i]);
  store(file_, text, O_TRUNC);
}

void LineHistory::add(const std::string& text) {
  if (text.empty() || (!entries_.empty() && entries_.back() == text)) return;
  entries_.push_back(text);
  if (file_.empty() || text.size() > kEntryBytesMax) return;
  std::error_code failed;
  const std::filesystem::path folder = file_.parent_path();
  if (!std::filesystem::exists(folder, failed)) {
    std::filesystem::create_directories(folder.parent_path(), failed);
    mkdir(folder.c_str(), 0700);
  }
  const std::string why = store(file_, escaped(text), O_APPEND);
  if (why.empty()) return;
  problem_ = "the history " + file_.string() + " cannot be written: " + why;
  file_.clear();
}

}  // namespace gemma4
