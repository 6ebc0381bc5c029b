// host_memory: how much more memory this process can take on this machine. The least of what the kernel calls available
// (/proc/meminfo), what the control groups of this process leave (version 1 and 2), and RLIMIT_AS. Page cache that can
// be dropped counts as available. And populate_memory(): allocated memory is taken now, not when it is touched.
#pragma once

#include <cstdint>
#include <filesystem>

namespace gemma4 {

// Bytes; a very large number where nothing says how much. The folders are arguments for tests.
int64_t available_host_memory(const std::filesystem::path& proc = "/proc",
                              const std::filesystem::path& cgroup = "/sys/fs/cgroup");

// Gives the pages of [data, data + bytes) their memory, and leaves what is in them. Any thread may call it while others
// use the memory. The kernel clears 2 MiB in 0.1 ms, but on a virtual machine whose host has to find the memory first
// it took 45 ms: too long for an engine step. Does nothing where the kernel cannot (before Linux 5.14).
void populate_memory(void* data, int64_t bytes);

}  // namespace gemma4
