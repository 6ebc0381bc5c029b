#include "server/background.h"

#include <algorithm>
#include <utility>

namespace gemma4 {

BackgroundWork::BackgroundWork(std::function<void()> work) : thread_([this, work = std::move(work)] { run(work); }) {}

void BackgroundWork::run(const std::function<void()>& work) {
  std::exception_ptr error;
  try {
    work();
  } catch (...) {
    error = std::current_exception();
  }
  done(std::move(error));
}

void BackgroundWork::done(std::exception_ptr error) {
  const MutexLock lock(mutex_);
  error_ = std::move(error);
  done_ = true;
  changed_.notify_all();
}

bool BackgroundWork::wait_until(std::chrono::steady_clock::time_point deadline) {
  const MutexLock lock(mutex_);
  while (!done_ && changed_.wait_until(mutex_, deadline)) {
  }
  return done_;
}

void BackgroundWork::get() {
  const MutexLock lock(mutex_);
  while (!done_) changed_.wait(mutex_);
  if (error_) std::rethrow_exception(error_);
}

bool wants_stream(std::string_view body) {
  constexpr std::string_view kSpace = " \t\r\n";
  const auto skip = [&](size_t at) { return std::min(body.find_first_not_of(kSpace, at), body.size()); };
  int depth = 0;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c != '"') continue;
    const size_t begin = ++i;
    while (i < body.size() && body[i] != '"') i += body[i] == '\\' ? 2 : 1;
    if (depth != 1 || i >= body.size() || body.substr(begin, i - begin) != "stream") continue;
    const size_t colon = skip(i + 1);
    if (colon < body.size() && body[colon] == ':' && body.substr(skip(colon + 1)).starts_with("true")) return true;
  }
  return false;
}

}  // namespace gemma4
