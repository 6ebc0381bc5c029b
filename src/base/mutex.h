// Mutex, MutexLock and CondVar: std::mutex and its kin with the annotations of clang's thread safety analysis, which
// `make test-locks` runs (https://clang.llvm.org/docs/ThreadSafetyAnalysis.html): a member marked GUARDED_BY(mutex_) is
// touched only while mutex_ is held. clang does not analyse the bodies of catch: call a function there that locks.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define GEMMA4_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define GEMMA4_THREAD_ANNOTATION(x)
#endif
#define GUARDED_BY(x) GEMMA4_THREAD_ANNOTATION(guarded_by(x))
#define PT_GUARDED_BY(x) GEMMA4_THREAD_ANNOTATION(pt_guarded_by(x))
#define REQUIRES(...) GEMMA4_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) GEMMA4_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define NO_THREAD_SAFETY_ANALYSIS GEMMA4_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace gemma4 {

class GEMMA4_THREAD_ANNOTATION(capability("mutex")) Mutex {
 public:
  void lock() GEMMA4_THREAD_ANNOTATION(acquire_capability()) { mutex_.lock(); }
  void unlock() GEMMA4_THREAD_ANNOTATION(release_capability()) { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

// Holds a Mutex from its construction to its destruction. unlock() and lock() let go of it in between.
class GEMMA4_THREAD_ANNOTATION(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) GEMMA4_THREAD_ANNOTATION(acquire_capability(mutex)) : mutex_(mutex), held_(true) {
    mutex_.lock();
  }
  ~MutexLock() GEMMA4_THREAD_ANNOTATION(release_capability()) {
    if (held_) mutex_.unlock();
  }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

  void unlock() GEMMA4_THREAD_ANNOTATION(release_capability()) {
    held_ = false;
    mutex_.unlock();
  }
  void lock() GEMMA4_THREAD_ANNOTATION(acquire_capability()) {
    mutex_.lock();
    held_ = true;
  }

 private:
  Mutex& mutex_;
  bool held_;
};

// A condition variable over a Mutex that the caller holds. A wait may return early: call it in a loop that checks the
// condition. (A predicate given as a lambda would be outside of what clang analyses.)
class CondVar {
 public:
  void wait(Mutex& mutex) REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    condition_.wait(lock);
    lock.release();
  }
  // False: `deadline` has passed.
  template <typename Clock, typename Duration>
  bool wait_until(Mutex& mutex, const std::chrono::time_point<Clock, Duration>& deadline) REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    const bool woken = condition_.wait_until(lock, deadline) == std::cv_status::no_timeout;
    lock.release();
    return woken;
  }
  void notify_one() { condition_.notify_one(); }
  void notify_all() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace gemma4
