#include "server/allocator.h"

#include <atomic>
#include <chrono>

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

void trim_free_memory() {
#if defined(__GLIBC__)
  using Clock = std::chrono::steady_clock;
  static std::atomic<Clock::rep> last = 0;
  const Clock::rep now = Clock::now().time_since_epoch().count();
  Clock::rep before = last;
  if (now - before < Clock::duration(std::chrono::seconds(1)).count()) return;
  if (last.compare_exchange_strong(before, now)) malloc_trim(0);
#endif
}

}  // namespace gemma4
