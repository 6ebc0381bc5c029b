#include "base/priority.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>

namespace gemma4 {
namespace {

// Ten steps are a tenth of a core beside one thread of ordinary priority (sched_prio_to_weight in Linux: 1024 and 110).
// The lowest of all, 19, would have a seventieth: a lock of the allocator could then be held for long.
constexpr int kLower = 10;
constexpr int kLowest = 19;

int nice_of(pid_t thread) { return getpriority(PRIO_PROCESS, static_cast<id_t>(thread)); }

}  // namespace

void lower_priority() { lower_priority(gettid()); }

void lower_priority(pid_t thread) {
  setpriority(PRIO_PROCESS, static_cast<id_t>(thread), std::min(nice_of(getpid()) + kLower, kLowest));
}

bool priority_is_lowered() { return nice_of(gettid()) > nice_of(getpid()); }

}  // namespace gemma4
