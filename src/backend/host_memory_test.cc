#include "backend/host_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/file.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMiB = int64_t{1} << 20;

// A /proc and a /sys/fs/cgroup of files.
class HostMemory : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("host_memory_" + std::to_string(getpid()));
    fs::create_directories(root_);
    put("proc/meminfo", "MemTotal:       33554432 kB\nMemFree:         1024 kB\nMemAvailable:    8388608 kB\n");
  }
  void TearDown() override { fs::remove_all(root_); }
  void put(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    write_file(root_ / path, text);
  }
  int64_t left() const { return available_host_memory(root_ / "proc", root_ / "cgroup") / kMiB; }

  fs::path root_;
};

TEST_F(HostMemory, IsWhatTheKernelCallsAvailable) {
  EXPECT_EQ(left(), 8192);
  EXPECT_GT(available_host_memory(), 0);
}

TEST_F(HostMemory, GroupsOfVersionTwoLimitIt) {
  put("proc/self/cgroup", "0::/app/worker\n");
  put("cgroup/app/worker/memory.max", "max\n");
  put("cgroup/app/worker/memory.current", "1048576\n");
  EXPECT_EQ(left(), 8192);
  put("cgroup/app/worker/memory.max", std::to_string(2048 * kMiB) + "\n");
  put("cgroup/app/worker/memory.current", std::to_string(600 * kMiB) + "\n");
  EXPECT_EQ(left(), 1448);
  // The page cache can be dropped.
  put("cgroup/app/worker/memory.stat",
      "file 1\ninactive_file " + std::to_string(300 * kMiB) + "\nactive_file " + std::to_string(200 * kMiB) + "\n");
  EXPECT_EQ(left(), 1948);
  // A group outside has less.
  put("cgroup/app/memory.max", std::to_string(1000 * kMiB) + "\n");
  put("cgroup/app/memory.current", std::to_string(900 * kMiB) + "\n");
  EXPECT_EQ(left(), 100);
  put("cgroup/app/memory.current", std::to_string(1100 * kMiB) + "\n");
  EXPECT_EQ(left(), 0);
}

TEST_F(HostMemory, AContainerSeesItsGroupAsTheRoot) {
  put("proc/self/cgroup", "0::/system.slice/docker-1234.scope\n");
  put("cgroup/memory.max", std::to_string(512 * kMiB) + "\n");
  put("cgroup/memory.current", std::to_string(12 * kMiB) + "\n");
  EXPECT_EQ(left(), 500);
}

TEST_F(HostMemory, GroupsOfVersionOneLimitIt) {
  put("proc/self/cgroup", "11:cpu,cpuacct:/x\n7:memory:/docker/1234\n0::/\n");
  put("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  put("cgroup/memory/memory.usage_in_bytes", "1000\n");
  EXPECT_EQ(left(), 8192);
  put("cgroup/memory/docker/1234/memory.limit_in_bytes", std::to_string(3000 * kMiB) + "\n");
  put("cgroup/memory/docker/1234/memory.usage_in_bytes", std::to_string(1000 * kMiB) + "\n");
  put("cgroup/memory/docker/1234/memory.stat",
      "inactive_file 5\ntotal_inactive_file " + std::to_string(400 * kMiB) + "\ntotal_active_file 0\n");
  EXPECT_EQ(left(), 2400);
}

TEST_F(HostMemory, AddressSpaceLimitsIt) {
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  // 64 TiB: AddressSanitizer maps some 20 TiB itself.
  const rlim_t limit = rlim_t{1} << 46;
  put("proc/self/status", "Name:\tx\nVmSize:\t  " + std::to_string((limit - 3072 * kMiB) >> 10) + " kB\n");
  if (before.rlim_max < limit) GTEST_SKIP() << "the address space is limited already";
  rlimit low = before;
  low.rlim_cur = limit;
  ASSERT_EQ(setrlimit(RLIMIT_AS, &low), 0);
  const int64_t least = left();
  setrlimit(RLIMIT_AS, &before);
  EXPECT_EQ(least, 3072);
}

TEST(PopulateMemory, TakesMemoryAndLeavesItsBytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t bytes = 5 * kMiB;
  auto* data = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(static_cast<void*>(data), MAP_FAILED);
  const auto taken = [&] {
    std::vector<unsigned char> pages(bytes / page);
    EXPECT_EQ(mincore(data, bytes, pages.data()), 0);
    return std::ranges::count_if(pages, [](unsigned char state) { return (state & 1) != 0; });
  };
  std::memset(data + 3 * kMiB, 7, page);
  ASSERT_LT(taken(), static_cast<int64_t>(bytes / page / 2));
  populate_memory(data + 1, static_cast<int64_t>(bytes) - 1);
  EXPECT_GE(taken(), static_cast<int64_t>(bytes / page - 1));
  EXPECT_EQ(data[3 * kMiB], 7);
  EXPECT_EQ(data[page], 0);
  munmap(data, bytes);
}

}  // namespace
}  // namespace gemma4
