// ProfiledBackend: measures the time of every op of another backend, for `gemma4 bench --profile`. It waits for the
// device before and after each op, so the sum is longer than a run without it; use the ops' shares of the total.
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
  // The totals by op and shape since the last call.
  std::map<std::string, Total> take() { return std::exchange(totals_, {}); }

  // Runs the ops without a graph: the ops of a graph cannot be timed one by one.
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
