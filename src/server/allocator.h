// What a long-running process asks of the C library's allocator, so that memory that was freed goes back to the system.
#pragma once

#include <cstddef>
#include <thread>

#include "base/mutex.h"

namespace gemma4 {

// Few arenas, and large blocks mapped on their own: each arena keeps what its threads have freed, and by default there
// are eight for each core. Call it before threads are started. Does nothing where the C library is not glibc.
void keep_little_free_memory();

// Gives freed memory back to the system, on a thread of its own: that takes some milliseconds, so it is done only where
// the process has grown, and at most once a second. Does nothing where the C library is not glibc.
class MemoryTrimmer {
 public:
  static constexpr size_t kGrowth = 4 << 20;  // bytes since it was done last

  MemoryTrimmer();
  ~MemoryTrimmer();
  MemoryTrimmer(const MemoryTrimmer&) = delete;
  MemoryTrimmer& operator=(const MemoryTrimmer&) = delete;

  // A request has ended. Soon after, since other threads may still hold some of it, the trimmer looks at the memory.
  // Any thread may call it.
  void request_ended() EXCLUDES(mutex_);

 private:
  void run() EXCLUDES(mutex_);

  Mutex mutex_;
  CondVar changed_;
  bool wanted_ GUARDED_BY(mutex_) = false, ending_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// Bytes of memory that this process holds and that no file has. 0 where the system does not say.
size_t anonymous_memory();

}  // namespace gemma4
