// The scheduling priority of threads. Linux only: there a thread has a nice value of its own.
#pragma once

#include <sys/types.h>

namespace gemma4 {

// Lowers the priority of a thread of this process (this thread; or the one that gettid() named) below that of threads
// which were not lowered: these take a core from it when both want one. There is no way back: to raise a priority
// takes a privilege. A thread that has ended is left alone.
void lower_priority();
void lower_priority(pid_t thread);

bool priority_is_lowered();  // this thread's

}  // namespace gemma4
