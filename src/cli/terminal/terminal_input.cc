#include "cli/terminal/terminal_input.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

namespace gemma4 {
namespace {

std::atomic<bool> resized{false}, suspended{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void set_handler(int signal, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  sigaction(signal, &action, nullptr);
}

}  // namespace

TerminalInput::Signals::Signals(bool wanted) : wanted_(wanted) {
  if (!wanted_) return;
  set_handler(SIGWINCH, [](int) { resized = true; });
  set_handler(SIGTSTP, [](int) { suspended = true; });
}

TerminalInput::Signals::~Signals() {
  if (!wanted_) return;
  set_handler(SIGWINCH, SIG_DFL);
  set_handler(SIGTSTP, SIG_DFL);
}

void TerminalInput::suspend() {
  set_handler(SIGTSTP, SIG_DFL);
  raise(SIGTSTP);
  set_handler(SIGTSTP, [](int) { suspended = true; });
}

TerminalInput::Got TerminalInput::next(char& byte) {
  while (true) {
    if (interrupted_ != nullptr && *interrupted_) return Got::kInterrupted;
    if (resized.exchange(false)) return Got::kResized;
    if (suspended.exchange(false)) return Got::kSuspend;
    if (at_ < buffer_.size()) {
      byte = buffer_[at_++];
      return Got::kByte;
    }
    // A signal may come to another thread, which ends no wait here: so the wait is short.
    pollfd input = {STDIN_FILENO, POLLIN, 0};
    if (poll(&input, 1, 100) <= 0) continue;
    char bytes[4096];
    const ssize_t count = ::read(STDIN_FILENO, bytes, sizeof(bytes));
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (count <= 0) return Got::kEnd;
    buffer_.assign(bytes, static_cast<size_t>(count));
    at_ = 0;
  }
}

TerminalInput::Got TerminalInput::paste(std::string& bytes) {
  const std::string ends = kPasteEnds;
  while (true) {
    char byte;
    const Got got = next(byte);
    if (got == Got::kResized || got == Got::kSuspend) continue;
    if (got != Got::kByte) return got;
    bytes += byte;
    if (!bytes.ends_with(ends)) continue;
    bytes.resize(bytes.size() - ends.size());
    return Got::kByte;
  }
}

}  // namespace gemma4
