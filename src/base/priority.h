// The scheduling priority of threads. Linux only: there a thread has a nice value of its own.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>

namespace gemma4 {

inline int nice_of(pid_t thread) { return getpriority(PRIO_PROCESS, static_cast<id_t>(thread)); }

// Lowers the priority of a thread of this process (this thread; or the one that gettid() named) below that of threads
// which were not lowered: these take a core from it when both want one. There is no way back: to raise a priority
// takes a privilege. A thread that has ended is left alone.
inline void lower_priority(pid_t thread = gettid()) {
  // Ten steps are a tenth of a core beside one thread of ordinary priority (sched_prio_to_weight in Linux: 1024 and
  // 110). The lowest of all, 19, would have a seventieth: a lock of the allocator could then be held for long.
  constexpr int kSteps = 10, kLowest = 19;
  setpriority(PRIO_PROCESS, static_cast<id_t>(thread), std::min(nice_of(getpid()) + kSteps, kLowest));
}

// This thread's, below that of the process's first thread.
inline bool priority_is_lowered() { return nice_of(gettid()) > nice_of(getpid()); }

}  // namespace gemma4
