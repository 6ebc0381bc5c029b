// The collective ops of ranks in one process: their results, and that no rank waits for one that failed.
#include "distributed/process_group.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

#include "backend/ranks.h"

namespace gemma4 {
namespace {

class RanksTest : public testing::TestWithParam<int> {};

// x[i] of rank r is 10^r at row 0, and so on: if a sum misses a rank or adds one twice, a decimal digit shows it.
TEST_P(RanksTest, AllReduceSumsEveryRankOnce) {
  const Ranks ranks = make_ranks("cpu", 2, GetParam());
  std::vector<std::vector<float>> got(ranks.size(), std::vector<float>(3 * 7));
  ranks.run([&](int r) {
    const Tensor wide = ranks[r].alloc(DType::kF32, {3, 9}), x = wide.columns(1, 7);
    std::vector<float> values(3 * 9);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i + 1) * std::pow(10.0f, r);
    ranks[r].write(wide, values.data());
    for (int again = 0; again < 3; ++again) ranks[r].all_reduce(x);  // the second sums the sums
    ranks[r].read(got[r].data(), x);
    std::vector<float> around(3 * 9);
    ranks[r].read(around.data(), wide);
    EXPECT_EQ(around[0], values[0]);  // the columns beside it stay
  });
  const auto n = static_cast<float>(ranks.size());
  float one = 0;
  for (int r = 0; r < ranks.size(); ++r) one += std::pow(10.0f, r);
  for (int r = 0; r < ranks.size(); ++r) {
    EXPECT_EQ(got[r], got[0]) << "to the bit";
    for (int i = 0; i < 21; ++i) EXPECT_EQ(got[r][i], static_cast<float>(i / 7 * 9 + i % 7 + 2) * one * n * n);
  }
}

TEST_P(RanksTest, BroadcastAndGatherColumns) {
  const Ranks ranks = make_ranks("ref", 0, GetParam());
  std::vector<int64_t> begins;  // uneven: rank r has r + 1 columns
  for (int64_t r = 0; r <= ranks.size(); ++r) begins.push_back(r * (r + 1) / 2);
  const int64_t cols = begins.back();
  ranks.run([&](int r) {
    const Tensor x = ranks[r].alloc(DType::kF32, {2, cols});
    std::vector<float> values(2 * cols, static_cast<float>(r + 1));
    ranks[r].write(x, values.data());
    ranks[r].gather_columns(x, begins);
    ranks[r].read(values.data(), x);
    for (int64_t i = 0; r == 0 && i < 2 * cols; ++i) {
      const auto owner = std::upper_bound(begins.begin(), begins.end(), i % cols) - begins.begin();
      EXPECT_EQ(values[i], static_cast<float>(owner)) << i;
    }
    ranks[r].broadcast(x);
    std::vector<float> all(2 * cols);
    ranks[r].read(all.data(), x);
    EXPECT_EQ(all.back(), static_cast<float>(ranks.size()));
    EXPECT_EQ(all.front(), 1.0f);
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, RanksTest, testing::Values(1, 2, 3, 4));

TEST(Ranks, EachHasItsOwnThread) {
  const Ranks ranks = make_ranks("ref", 0, 3);
  std::vector<std::thread::id> first(3), second(3);
  ranks.run([&](int r) { first[r] = std::this_thread::get_id(); });
  ranks.run([&](int r) { second[r] = std::this_thread::get_id(); });
  EXPECT_EQ(first, second);
  EXPECT_EQ(first[0], std::this_thread::get_id());
  EXPECT_NE(first[1], first[2]);
}

TEST(Ranks, OneThatFailsEndsTheOthers) {
  for (const int bad : {0, 1, 3}) {
    const Ranks ranks = make_ranks("ref", 0, 4);
    std::atomic<int> ended{0};
    const auto work = [&](int r) {
      if (r == bad) throw DeviceError("rank " + std::to_string(bad) + " fell off the bus");
      try {
        ranks[r].all_reduce(ranks[r].alloc(DType::kF32, {1, 8}));
      } catch (const DeviceError&) {
        ++ended;
        throw;
      }
    };
    try {
      ranks.run(work);
      FAIL();
    } catch (const DeviceError& error) {
      EXPECT_EQ(error.what(), "rank " + std::to_string(bad) + " fell off the bus");
    }
    EXPECT_EQ(ended, 3);
    EXPECT_THROW(ranks[0].all_reduce(ranks[0].alloc(DType::kF32, {1, 8})), DeviceError) << "nor later";
  }
}

TEST(Ranks, RefusesNone) { EXPECT_THROW(make_ranks("cpu", 0, 0), Error); }

}  // namespace
}  // namespace gemma4
