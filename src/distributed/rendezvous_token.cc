#include "distributed/rendezvous_token.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/check.h"
#include "distributed/handshake.h"

namespace gemma4 {
namespace {

constexpr size_t kFileBytes = 64;

std::string advice() {
  return std::string("; or set the variable ") + kTokenVariable + " to a secret of " + std::to_string(kTokenLeast) +
         " characters or more, the same for all processes (openssl rand -hex 16 makes one)";
}

// Processes of several hosts share no file.
void need_one_host(const ProcessInfo& process) {
  if (process.local_world == process.world) return;
  throw Error("the processes lie on several hosts and connect to " + process.address +
              ", where strangers can connect too" + advice().replace(0, 5, ": "));
}

std::string random_text() {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  while (text.size() < kFileBytes) {
    for (const uint8_t byte : random_nonce()) text += {kDigits[byte >> 4], kDigits[byte & 15]};
  }
  return text.substr(0, kFileBytes);
}

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& why) {
  throw Error("the token of this job in " + path.string() + ": " + why + advice());
}

bool is_mine(const struct stat& is) { return S_ISREG(is.st_mode) && is.st_uid == geteuid(); }

}  // namespace

std::filesystem::path token_file(int port) {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  struct stat is = {};
  const bool usable =
      runtime != nullptr && *runtime == '/' && stat(runtime, &is) == 0 && S_ISDIR(is.st_mode) && is.st_uid == geteuid();
  return std::filesystem::path(usable ? runtime : "/tmp") /
         ("gemma4-rank-0-" + std::to_string(geteuid()) + "-" + std::to_string(port));
}

OfferedToken::OfferedToken(const ProcessInfo& process) : token_(process.token) {
  if (!token_.empty()) return;
  need_one_host(process);
  const std::filesystem::path path = token_file(process.port);
  struct stat is = {};
  // The port is bound, so a file that this user left there is of a job that has ended.
  if (lstat(path.c_str(), &is) == 0 && is_mine(is)) unlink(path.c_str());
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0) fail(path, std::strerror(errno));
  file_ = path;
  token_ = random_text();
  const bool written = write(fd, token_.data(), kFileBytes) == ssize_t{kFileBytes};
  close(fd);
  if (written) return;
  unlink(path.c_str());
  fail(path, "cannot write it");
}

OfferedToken::~OfferedToken() {
  if (!file_.empty()) unlink(file_.c_str());
}

std::string find_token(const ProcessInfo& process) {
  if (!process.token.empty()) return process.token;
  need_one_host(process);
  const std::filesystem::path path = token_file(process.port);
  const int fd = open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail(path, std::strerror(errno));
  struct stat is = {};
  std::string token(kFileBytes, '\0');
  const bool mine = fstat(fd, &is) == 0 && is_mine(is) && (is.st_mode & 077) == 0;
  const bool whole = mine && read(fd, token.data(), token.size()) == static_cast<ssize_t>(token.size());
  close(fd);
  if (!mine) fail(path, "another user can read or write it");
  if (!whole) fail(path, "it is cut short");
  return token;
}

}  // namespace gemma4
