// ProfiledBackend: another backend with a stopwatch at every op, for `gemma4 bench --profile`. It waits for the
// device around each op, so that times add up to more than a run without it takes; shares are what it is for.
#pragma once

#include <chrono>
#include <map>
#include <string>

#include "backend/forwarding_backend.h"

namespace gemma4 {

class ProfiledBackend final : public ForwardingBackend {
 public:
  explicit ProfiledBackend(Backend& inner)
      : ForwardingBackend(inner, [this](const std::string& op, FunctionRef<void()> run) { time(op, run); }) {}

  struct Total {
    int64_t calls = 0;
    double seconds = 0;
  };
  // By op and shape. Empty once taken.
  std::map<std::string, Total> take() { return std::exchange(totals_, {}); }

  // Nothing is recorded: a replayed graph could not be timed op by op.
  void replay(uint64_t key, const std::function<void()>& issue) override { Backend::replay(key, issue); }

 private:
  void time(const std::string& op, FunctionRef<void()> run) {
    inner().sync();
    const auto start = std::chrono::steady_clock::now();
    run();
    inner().sync();
    Total& total = totals_[op];
    total.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ++total.calls;
  }

  std::map<std::string, Total> totals_;
};

}  // namespace gemma4
