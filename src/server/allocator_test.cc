#include "server/allocator.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <thread>
#include <vector>

namespace gemma4 {
namespace {

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Small blocks, of which the last one stays: what was freed below it does not go back by itself.
TEST(MemoryTrimmer, GivesBackWhatARequestLeftBehind) {
  constexpr size_t kBlock = 1 << 10, kBlocks = 64 << 10;
  MemoryTrimmer trimmer;
  const size_t before = anonymous_memory();
  ASSERT_GT(before, 0u);
  std::vector<std::unique_ptr<std::vector<char>>> blocks;
  for (size_t i = 0; i < kBlocks; ++i) blocks.push_back(std::make_unique<std::vector<char>>(kBlock, 'x'));
  auto last = std::move(blocks.back());
  ASSERT_GT(anonymous_memory(), before + kBlock * kBlocks / 2);
  blocks.clear();
  ASSERT_GT(anonymous_memory(), before + kBlock * kBlocks / 2);
  trimmer.request_ended();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (anonymous_memory() > before + kBlock * kBlocks / 8 && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_LT(anonymous_memory(), before + kBlock * kBlocks / 8);
  EXPECT_EQ(last->back(), 'x');
}
#endif

TEST(MemoryTrimmer, EndsWhileItWaits) {
  for (int i = 0; i < 20; ++i) {
    MemoryTrimmer trimmer;
    if (i % 2 == 0) trimmer.request_ended();
  }
}

}  // namespace
}  // namespace gemma4
