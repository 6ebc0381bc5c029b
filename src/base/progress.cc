#include "base/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace gemma4 {

using std::chrono::steady_clock;

Progress::Progress(std::string what, uint64_t total_bytes)
    : what_(std::move(what)), total_(std::max<uint64_t>(total_bytes, 1)), terminal_(isatty(STDERR_FILENO) != 0) {
  start_ = drawn_ = steady_clock::now();
  if (terminal_) draw("");
}

Progress::~Progress() {
  draw("");
  if (terminal_) std::fputc('\n', stderr);
}

void Progress::add(uint64_t bytes, const std::string& detail) {
  done_ = std::min(done_ + bytes, total_);
  const auto now = steady_clock::now();
  const auto interval = std::chrono::milliseconds(terminal_ ? 100 : 10'000);
  if (now - drawn_ < interval) return;
  drawn_ = now;
  draw(detail);
}

void Progress::draw(const std::string& detail) {
  const double seconds = std::chrono::duration<double>(steady_clock::now() - start_).count();
  const double part = static_cast<double>(done_) / static_cast<double>(total_);
  const double rate = seconds > 0 ? static_cast<double>(done_) / seconds / 1e6 : 0;
  if (!terminal_) {
    std::fprintf(stderr, "%s: %3.0f %%, %.1f s, %.0f MB/s\n", what_.c_str(), 100 * part, seconds, rate);
    return;
  }
  constexpr int kWidth = 30;
  const int filled = static_cast<int>(part * kWidth);
  std::string bar(static_cast<size_t>(filled), '#');
  bar.resize(kWidth, '.');
  std::fprintf(stderr, "\r%s [%s] %3.0f %% %6.0f MB/s %.40s\033[K", what_.c_str(), bar.c_str(), 100 * part, rate,
               detail.c_str());
  std::fflush(stderr);
}

}  // namespace gemma4
