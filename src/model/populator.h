// Populator: takes the memory that the largest batch and picture need, before a step waits for it.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>
#include <utility>

#include "base/mutex.h"

namespace gemma4 {

// Takes memory on a thread of its own, which has the priority of the process. A thread of lower priority could be left
// without a core inside of madvise(), and whoever maps or unmaps memory waits for it. What was taken once stays: all
// waits together take no longer than the largest picture's memory does.
class Populator {
 public:
  using Work = std::function<void(int rows, int patches)>;
  explicit Populator(Work work) : work_(std::move(work)), thread_([this] { run(); }) {}
  ~Populator() {
    {
      const MutexLock lock(mutex_);
      ending_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }

  // Returns when so many have their memory. Any thread may call it.
  void wait_for(int rows, int patches) EXCLUDES(mutex_) {
    if (rows <= rows_done_ && patches <= patches_done_) return;
    const MutexLock lock(mutex_);
    rows_ = std::max(rows_, rows), patches_ = std::max(patches_, patches);
    changed_.notify_all();
    while (rows > rows_done_ || patches > patches_done_) changed_.wait(mutex_);
  }

 private:
  void run() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    while (!ending_) {
      const int rows = rows_, patches = patches_;
      if (rows <= rows_done_ && patches <= patches_done_) {
        changed_.wait(mutex_);
        continue;
      }
      lock.unlock();
      work_(rows > rows_done_ ? rows : 0, patches > patches_done_ ? patches : 0);
      lock.lock();
      rows_done_ = rows, patches_done_ = patches;
      changed_.notify_all();
    }
  }

  const Work work_;
  Mutex mutex_;
  CondVar changed_;
  int rows_ GUARDED_BY(mutex_) = 0, patches_ GUARDED_BY(mutex_) = 0;  // wanted
  std::atomic<int> rows_done_ = 0, patches_done_ = 0;
  bool ending_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace gemma4
