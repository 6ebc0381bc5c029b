// WorkBudget: how much one request may make a thread do, and whether the request is still wanted. Whoever works for a
// request (compiles its schema, makes its masks, decodes its pictures) charges the budget where the work is done.
// Past a limit, or once the request is cancelled, the charge throws, so that one request fails and no other waits.
// Any number of threads may use one budget.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "base/check.h"

namespace gemma4 {

// The request asks for more work than its budget has: a bad request.
struct BudgetError : Error {
  using Error::Error;
};

// Nobody waits for the result any more.
struct CancelledError : Error {
  using Error::Error;
};

// One request's budgets share it: cancelling is one store.
using CancelFlag = std::shared_ptr<std::atomic<bool>>;

struct WorkLimits {
  static constexpr uint64_t kUnlimited = ~uint64_t{0};
  uint64_t steps = kUnlimited;  // a step is about 10 ns of one core
  uint64_t bytes = kUnlimited;  // held at one time
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
};

class WorkBudget {
 public:
  // `what` begins the sentence of a BudgetError: "the schema".
  explicit WorkBudget(std::string what, WorkLimits limits = {},
                      CancelFlag cancelled = std::make_shared<std::atomic<bool>>(false))
      : what_(std::move(what)), limits_(limits), cancelled_(std::move(cancelled)) {}

  // Throws BudgetError past the limit of steps or the deadline, CancelledError once cancelled. A charge that throws
  // counts too, so that every later one throws as well.
  void charge(uint64_t steps) {
    if (cancelled()) throw CancelledError("the request was cancelled");
    const uint64_t before = used_.fetch_add(steps, std::memory_order_relaxed);
    if (before + steps > limits_.steps + earned_.load(std::memory_order_relaxed)) throw_limit("work");
    constexpr uint64_t kClockSteps = 1 << 16;  // looks at the clock about once a millisecond
    const bool timed = limits_.deadline != std::chrono::steady_clock::time_point::max();
    if (timed && before / kClockSteps != (before + steps) / kClockSteps &&
        std::chrono::steady_clock::now() > limits_.deadline) {
      throw_limit("time");
    }
  }
  // Adds to the limit of steps: an output that grows may cost more. Only where the limit is not kUnlimited.
  void earn(uint64_t steps) {
    if (limits_.steps != WorkLimits::kUnlimited) earned_.fetch_add(steps, std::memory_order_relaxed);
  }
  // Memory that is now held, and no longer held. hold() throws BudgetError past the limit and then holds nothing.
  void hold(uint64_t bytes) {
    if (held_.fetch_add(bytes, std::memory_order_relaxed) + bytes > limits_.bytes) {
      release(bytes);
      throw_limit("memory");
    }
  }
  void release(uint64_t bytes) { held_.fetch_sub(bytes, std::memory_order_relaxed); }

  void cancel() { cancelled_->store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_->load(std::memory_order_relaxed); }
  uint64_t steps_used() const { return used_.load(std::memory_order_relaxed); }
  uint64_t bytes_held() const { return held_.load(std::memory_order_relaxed); }

 private:
  [[noreturn]] void throw_limit(const char* of) const {
    throw BudgetError(what_ + " needs more " + of + " than one request may take");
  }

  const std::string what_;
  const WorkLimits limits_;
  const CancelFlag cancelled_;
  std::atomic<uint64_t> used_{0}, earned_{0}, held_{0};
};

// Memory that is held until this object goes.
class HeldBytes {
 public:
  explicit HeldBytes(WorkBudget& budget) : budget_(budget) {}
  ~HeldBytes() { budget_.release(bytes_); }
  HeldBytes(const HeldBytes&) = delete;
  HeldBytes& operator=(const HeldBytes&) = delete;

  void add(uint64_t bytes) {
    budget_.hold(bytes);
    bytes_ += bytes;
  }
  void release() { budget_.release(std::exchange(bytes_, 0)); }
  uint64_t bytes() const { return bytes_; }

 private:
  WorkBudget& budget_;
  uint64_t bytes_ = 0;
};

}  // namespace gemma4
