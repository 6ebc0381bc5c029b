#include "server/preparing.h"

#include <gtest/gtest.h>

#include <future>

namespace gemma4 {
namespace {

using std::chrono::milliseconds;

TEST(Turns, OneClientLeavesATurnForTheOthers) {
  Turns turns(2);
  const Cancellation none;
  turns.take("a", none);
  auto second = std::async(std::launch::async, [&] { turns.take("a", none); });
  EXPECT_EQ(second.wait_for(milliseconds(100)), std::future_status::timeout);
  turns.take("b", none);  // at once, though "a" came before
  turns.give_back("a");
  second.get();
  turns.give_back("a");
  turns.give_back("b");
}

TEST(Turns, AClientThatHasGoneWaitsNoLonger) {
  Turns turns(2);
  Cancellation gone;
  turns.take("a", gone);
  auto second = std::async(std::launch::async, [&] { turns.take("a", gone); });
  gone.cancel();
  EXPECT_THROW(second.get(), CancelledError);
  turns.give_back("a");
}

TEST(PreparationWatch, CancelsWhereTheClientHasGoneOrTheTimeIsOver) {
  PreparationWatch watch;
  PreparationWatch::Watched gone, late, there;
  const auto soon = std::chrono::steady_clock::now();
  gone.alive = [] { return false; };
  late.alive = there.alive = [] { return true; };
  gone.deadline = there.deadline = soon + std::chrono::hours(1);
  late.deadline = soon;
  for (auto* watched : {&gone, &late, &there}) watch.add(*watched);
  for (int i = 0; i < 500 && !(gone.cancellation->cancelled() && late.cancellation->cancelled()); ++i) {
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_TRUE(gone.cancellation->cancelled() && !gone.late);
  EXPECT_TRUE(late.cancellation->cancelled() && late.late);
  EXPECT_FALSE(there.cancellation->cancelled());
  for (auto* watched : {&gone, &late, &there}) watch.remove(*watched);
}

}  // namespace
}  // namespace gemma4
