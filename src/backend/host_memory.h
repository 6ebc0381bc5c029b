// host_memory: how much more memory this process can take on this machine. The least of what the kernel calls available
// (/proc/meminfo), what the control groups of this process leave (version 1 and 2), and RLIMIT_AS. Page cache that can
// be dropped counts as available.
#pragma once

#include <cstdint>
#include <filesystem>

namespace gemma4 {

// Bytes; a very large number where nothing says how much. The folders are arguments for tests.
int64_t available_host_memory(const std::filesystem::path& proc = "/proc",
                              const std::filesystem::path& cgroup = "/sys/fs/cgroup");

}  // namespace gemma4
