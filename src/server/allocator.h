// What a long-running process asks of the C library's allocator, so that memory that was freed goes back to the system.
#pragma once

#include <cstddef>

namespace gemma4 {

// Few arenas, and large blocks mapped on their own: each arena keeps what its threads have freed, and by default there
// are eight for each core. Call it before threads are started. Does nothing where the C library is not glibc.
void keep_little_free_memory();

// Gives freed memory back to the system, at most once a second: a call takes some milliseconds. Any thread may call it.
void trim_free_memory();

}  // namespace gemma4
