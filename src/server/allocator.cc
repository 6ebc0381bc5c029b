#include "server/allocator.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace gemma4 {

void keep_little_free_memory() {
#if defined(__GLIBC__)
  mallopt(M_ARENA_MAX, 4);
  mallopt(M_MMAP_THRESHOLD, 256 << 10);  // fixed: by default it grows to 32 MiB with the blocks that are freed
  mallopt(M_TRIM_THRESHOLD, 1 << 20);
#endif
}

size_t anonymous_memory() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  unsigned long size = 0, resident = 0, of_files = 0;
  const bool read = std::fscanf(file, "%lu %lu %lu", &size, &resident, &of_files) == 3 && resident >= of_files;
  std::fclose(file);
  return read ? (resident - of_files) * static_cast<size_t>(sysconf(_SC_PAGESIZE)) : 0;
}

MemoryTrimmer::MemoryTrimmer() : thread_([this] { run(); }) {}

MemoryTrimmer::~MemoryTrimmer() {
  {
    const MutexLock lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void MemoryTrimmer::request_ended() {
  {
    const MutexLock lock(mutex_);
    if (wanted_) return;
    wanted_ = true;
  }
  changed_.notify_all();
}

static void trim_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

void MemoryTrimmer::run() {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kAfterRequest(100), kBetween(1000);
  size_t least = anonymous_memory();
  bool again = false;  // it was trimmed while requests may still have held memory
  MutexLock lock(mutex_);
  const auto pause = [&](std::chrono::milliseconds time) REQUIRES(mutex_) {
    const Clock::time_point end = Clock::now() + time;
    while (!ending_ && Clock::now() < end) changed_.wait_until(mutex_, end);
  };
  while (!ending_) {
    if (!wanted_ && !again) {
      changed_.wait(mutex_);
      continue;
    }
    pause(wanted_ ? kAfterRequest : kBetween);
    const bool last = !wanted_;
    wanted_ = false;
    if (ending_) return;
    lock.unlock();
    const bool trims = last || anonymous_memory() > least + kGrowth;
    if (trims) {
      trim_memory();
      least = anonymous_memory();
    }
    lock.lock();
    again = trims ? !last : again;
    if (trims && !last) pause(kBetween);
  }
}

}  // namespace gemma4
