// Mapped files that change or are cut short while they are in use.
#include "base/mapped_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/file.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

constexpr size_t kSize = 1 << 20;

class MappedFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    write_file(path_, std::string(kSize, 'x'));
  }
  void TearDown() override { fs::remove(path_); }

  static std::string complaint() {
    try {
      check_mapped_files();
    } catch (const DeviceError& error) {
      return error.what();
    }
    return "";
  }

  const fs::path path_ = fs::path(testing::TempDir()) / ("gemma4_mapped_" + std::to_string(getpid()));
};

int read_at(const MappedFile& file, size_t at) {
  return static_cast<int>(*static_cast<const volatile std::byte*>(file.bytes().data() + at));
}

TEST_F(MappedFileTest, ARewriteInPlaceIsNoticed) {
  const auto file = MappedFile::open(path_);
  EXPECT_EQ(complaint(), "");
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the clock of files has steps of some milliseconds
  std::fstream(path_, std::ios::in | std::ios::out).put('y');
  EXPECT_EQ(complaint(), path_.string() + " was changed while it was in use; start again");
}

TEST_F(MappedFileTest, ATruncationIsNoticedAndReadsZeros) {
  {
    const auto file = MappedFile::open(path_), other = MappedFile::open(path_);
    handle_lost_pages(LostPages::kZeros);
    fs::resize_file(path_, 100);
    EXPECT_NE(complaint().find("was changed"), std::string::npos);
    EXPECT_EQ(read_at(*file, 0), 'x');
    EXPECT_EQ(read_at(*file, kSize - 1), 0);
    EXPECT_EQ(read_at(*file, 100'000), 0);
    EXPECT_NE(complaint().find("can no longer be read"), std::string::npos);
    EXPECT_EQ(read_at(*other, 0), 'x') << "another mapping";
    handle_lost_pages(LostPages::kExit);
  }
  EXPECT_EQ(complaint(), "") << "only of files that are mapped now";
}

#if defined(__SANITIZE_THREAD__)
// The handler maps zeros over pages that other threads read at that moment. They find zeros or raise the signal too:
// both are meant. ThreadSanitizer takes the mapping for a write.
extern "C" const char* __tsan_default_suppressions() { return "race:on_bus_error\n"; }
#endif

TEST_F(MappedFileTest, ThreadsThatReadWhatIsLostAllGoOn) {
  const auto file = MappedFile::open(path_);
  handle_lost_pages(LostPages::kZeros);
  fs::resize_file(path_, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t at = t * 64; at < kSize; at += 4096) EXPECT_EQ(read_at(*file, at), 0);
    });
  }
  for (std::thread& thread : threads) thread.join();
  handle_lost_pages(LostPages::kExit);
  EXPECT_NE(complaint(), "");
}

TEST_F(MappedFileTest, AFileThatIsReplacedStaysAsItWas) {
  const auto file = MappedFile::open(path_);
  write_file(path_, "another");
  EXPECT_EQ(complaint(), "");
  EXPECT_EQ(read_at(*file, kSize - 1), 'x');
  fs::remove(path_);
  EXPECT_EQ(complaint(), "");
}

TEST_F(MappedFileTest, ForgettingPagesTakesNoOtherMemory) {
  const auto file = MappedFile::open(path_);
  const std::vector<char> own(kSize, 'y');
  forget_pages(own.data(), own.size());
  EXPECT_EQ(own, std::vector<char>(kSize, 'y'));
  forget_pages(file->bytes().data() - kSize, 3 * kSize);  // more than the file on both sides
  EXPECT_EQ(read_at(*file, 0), 'x');
  EXPECT_EQ(own, std::vector<char>(kSize, 'y'));
}

TEST_F(MappedFileTest, ByDefaultATruncationIsOneSentenceAndExitCode3) {
  EXPECT_EXIT(
      {
        handle_lost_pages(LostPages::kExit);
        const auto file = MappedFile::open(path_);
        fs::resize_file(path_, 100);
        read_at(*file, kSize - 1);
      },
      testing::ExitedWithCode(kExitDevice), "can no longer be read: it was cut short while it was in use");
}

TEST_F(MappedFileTest, ElsewhereTheSignalDoesWhatItDid) {
  EXPECT_DEATH(
      {
        handle_lost_pages(LostPages::kZeros);
        const int fd = ::open(path_.c_str(), O_RDONLY);
        void* data = ::mmap(nullptr, kSize, PROT_READ, MAP_SHARED, fd, 0);
        fs::resize_file(path_, 100);
        std::fprintf(stderr, "%d", static_cast<const volatile char*>(data)[kSize - 1]);
      },
      "");
  EXPECT_DEATH(
      {
        handle_lost_pages(LostPages::kZeros);
        raise(SIGBUS);
      },
      "");
}

}  // namespace
}  // namespace gemma4
