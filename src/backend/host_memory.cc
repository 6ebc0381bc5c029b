#include "backend/host_memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kUnlimited = int64_t{1} << 50;
constexpr int kGroupsMax = 64;  // groups inside each other

std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The number in a file that holds nothing else. "max" and what is no number are none.
std::optional<int64_t> number_in(const fs::path& path) {
  const std::string text = text_of(path);
  if (text.empty() || text[0] < '0' || text[0] > '9') return std::nullopt;
  return std::min<unsigned long long>(std::strtoull(text.c_str(), nullptr, 10), kUnlimited);
}

// The number after `name` at the beginning of a line.
std::optional<int64_t> value_of(const std::string& text, const std::string& name) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name)) continue;
    const size_t digits = line.find_first_of("0123456789", name.size());
    if (digits != std::string::npos) return std::strtoll(line.c_str() + digits, nullptr, 10);
  }
  return std::nullopt;
}

// What one group leaves: its limit less its use, in which the page cache does not count.
int64_t left_in_group(const fs::path& group, const char* limit_name, const char* use_name, const char* prefix) {
  const auto limit = number_in(group / limit_name);
  const auto use = number_in(group / use_name);
  if (!limit || !use || *limit >= kUnlimited) return kUnlimited;
  const std::string stat = text_of(group / "memory.stat");
  const int64_t cache = value_of(stat, std::string(prefix) + "inactive_file ").value_or(0) +
                        value_of(stat, std::string(prefix) + "active_file ").value_or(0);
  return std::max<int64_t>(0, *limit - std::max<int64_t>(0, *use - cache));
}

// The least of a group's and of those that hold it. `path`: of the group below `root`. Inside a container the root may
// be the group itself, so folders that do not exist are passed over.
template <typename Left>
int64_t left_in_groups(const fs::path& root, const std::string& path, const Left& left) {
  int64_t least = left(root);
  fs::path inside = fs::path(path).relative_path();
  for (int i = 0; i < kGroupsMax && !inside.empty(); ++i) {
    least = std::min(least, left(root / inside));
    inside = inside.parent_path();
  }
  return least;
}

int64_t left_in_cgroups(const fs::path& proc, const fs::path& cgroup) {
  int64_t least = kUnlimited;
  std::istringstream lines(text_of(proc / "self/cgroup"));
  for (std::string line; std::getline(lines, line);) {  // "0::/path", "7:memory:/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",",
                      path = line.substr(second + 1);
    if (controllers == ",,") {
      const auto left = [](const fs::path& group) {
        return std::min(left_in_group(group, "memory.max", "memory.current", ""),
                        left_in_group(group, "memory.high", "memory.current", ""));
      };
      least = std::min(least, left_in_groups(cgroup, path, left));
    } else if (controllers.find(",memory,") != std::string::npos) {
      const auto left = [](const fs::path& group) {
        return left_in_group(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_");
      };
      least = std::min(least, left_in_groups(cgroup / "memory", path, left));
    }
  }
  return least;
}

int64_t left_of_address_space(const fs::path& proc) {
  rlimit limit = {};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnlimited;
  const auto used = value_of(text_of(proc / "self/status"), "VmSize:");  // kB
  return std::max<int64_t>(
      0, static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, kUnlimited)) - 1024 * used.value_or(0));
}

}  // namespace

int64_t available_host_memory(const fs::path& proc, const fs::path& cgroup) {
  int64_t least = kUnlimited;
  if (const auto kilobytes = value_of(text_of(proc / "meminfo"), "MemAvailable:")) least = 1024 * *kilobytes;
  least = std::min(least, left_in_cgroups(proc, cgroup));
  return std::min(least, left_of_address_space(proc));
}

void populate_memory(void* data, int64_t bytes) {
#ifdef MADV_POPULATE_WRITE
  constexpr uintptr_t kPart = uintptr_t{2} << 20;  // a huge page: other calls of the process wait for one part at most
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / page * page;
  for (uintptr_t at = (address + page - 1) / page * page; at < end;) {
    const uintptr_t next = std::min(end, (at / kPart + 1) * kPart);
    if (madvise(reinterpret_cast<void*>(at), next - at, MADV_POPULATE_WRITE) != 0) return;
    at = next;
  }
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace gemma4
