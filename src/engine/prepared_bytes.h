// PreparedBytes: how much memory do the prepared pictures of requests take that do not run yet? A request reserves what
// its pictures will take before it decodes the first, and waits, in order of arrival, while others hold too much. One
// request alone may take any amount: the length of its prompt bounds it. Thread-safe.
#pragma once

#include <cstdint>
#include <list>
#include <memory>

#include "base/mutex.h"
#include "engine/request.h"

namespace gemma4 {

class PreparedBytes {
 public:
  explicit PreparedBytes(int64_t limit) : limit_(limit) {}

  using Held = std::shared_ptr<void>;  // gives its bytes back when the last copy goes; this object must outlive it

  // Waits (Preparation::pause) until `bytes` fit. Throws CancelledError.
  Held take(int64_t bytes, const Preparation& preparation) EXCLUDES(mutex_);
  int64_t bytes() const EXCLUDES(mutex_);
  int waiting() const EXCLUDES(mutex_);

 private:
  bool try_take(int64_t bytes) EXCLUDES(mutex_);
  void wait(int64_t bytes, const Preparation& preparation) EXCLUDES(mutex_);
  void give_back(int64_t bytes) EXCLUDES(mutex_);
  bool fits(int64_t bytes) const REQUIRES(mutex_) { return bytes_ == 0 || bytes_ + bytes <= limit_; }

  const int64_t limit_;
  mutable Mutex mutex_;
  CondVar changed_;
  int64_t bytes_ GUARDED_BY(mutex_) = 0;
  std::list<int64_t> queue_ GUARDED_BY(mutex_);  // who waits, in order
};

}  // namespace gemma4
