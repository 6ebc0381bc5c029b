#include "server/preparing.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <future>
#include <thread>
#include <vector>

#include "base/priority.h"

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

TEST(Turns, ALongPreparationMakesWayForAShortOne) {
  Turns turns(1);
  const Cancellation none;
  Turn slow(turns, "", none);
  std::vector<std::string> order;
  const auto begun = std::chrono::steady_clock::now();
  auto quick = std::async(std::launch::async, [&] {
    const Turn turn(turns, "", none);
    order.push_back("quick");
  });
  while (order.empty() && std::chrono::steady_clock::now() - begun < std::chrono::seconds(10)) slow.make_way();
  order.push_back("slow");
  quick.get();
  EXPECT_EQ(order, (std::vector<std::string>{"quick", "slow"}));
}

TEST(Turns, LargeRequestsLeaveTurnsForSmallOnes) {
  Turns turns(4, 2);
  const Cancellation none;
  turns.take("", none, {}, true);
  turns.take("", none, {}, true);
  auto third = std::async(std::launch::async, [&] { turns.take("", none, {}, true); });
  EXPECT_EQ(third.wait_for(milliseconds(100)), std::future_status::timeout);
  turns.take("", none);
  turns.take("", none);
  turns.give_back("");
  EXPECT_EQ(third.wait_for(milliseconds(100)), std::future_status::timeout);
  turns.give_back("", true);
  third.get();
  turns.give_back("", true);
  turns.give_back("", true);
  turns.give_back("");
  const Turn all(turns, "", none, size_t{1} << 20);
}

// Forty requests of a megabyte that came at once made a chat that came after them wait for all.
TEST(Turns, ASmallRequestGoesBeforeLargeOnesThatCameJustBefore) {
  Turns turns(1);
  const Cancellation none;
  auto first = std::make_unique<Turn>(turns, "", none);
  Mutex mutex;
  std::vector<std::string> order;
  const auto wait = [&](const std::string& name, size_t bytes) {
    return std::async(std::launch::async, [&, name, bytes] {
      const Turn turn(turns, "", none, bytes);
      const MutexLock lock(mutex);
      order.push_back(name);
    });
  };
  std::vector<std::future<void>> waiting;
  waiting.push_back(wait("large", 60'000'000));
  while (!turns.wanted()) std::this_thread::yield();
  std::this_thread::sleep_for(milliseconds(50));
  waiting.push_back(wait("small", 300));
  std::this_thread::sleep_for(milliseconds(200));
  first.reset();
  for (auto& one : waiting) one.get();
  EXPECT_EQ(order, (std::vector<std::string>{"small", "large"}));
}

// A request that had 300 ms waits behind those that came since, but not behind those that come 300 ms later.
TEST(Turns, ARequestThatHadMuchIsNotPutOffForEver) {
  Turns turns(1);
  const Cancellation none;
  turns.take("", none);
  Mutex mutex;
  std::vector<std::string> order;
  const auto asks = [&](std::string name, milliseconds used) {
    auto asked = std::async(std::launch::async, [&, name, used] {
      turns.take("", none, used);
      {
        const MutexLock lock(mutex);
        order.push_back(name);
      }
      turns.give_back("");
    });
    std::this_thread::sleep_for(milliseconds(100));
    return asked;
  };
  auto slow = asks("slow", milliseconds(300));
  auto soon = asks("soon", {});
  std::this_thread::sleep_for(milliseconds(400));
  auto later = asks("later", {});
  turns.give_back("");
  for (auto* one : {&slow, &soon, &later}) one->get();
  EXPECT_EQ(order, (std::vector<std::string>{"soon", "slow", "later"}));
}

// Those that wait cost nothing where a turn changes hands: only the next one is woken.
TEST(Turns, ManyWaitersGetTheirTurnsQuickly) {
  Turns turns(1);
  const Cancellation none;
  turns.take("", none);
  std::atomic<int> done = 0;
  std::vector<std::thread> waiters;
  for (int i = 0; i < 200; ++i) {
    waiters.emplace_back([&] {
      const Turn turn(turns, "", none);
      ++done;
    });
  }
  while (!turns.wanted()) std::this_thread::yield();
  turns.give_back("");
  for (std::thread& waiter : waiters) waiter.join();
  EXPECT_EQ(done, 200);
  EXPECT_FALSE(turns.wanted());
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

// Also a request that comes after stop(): it may have been accepted before.
TEST(PreparationWatch, StopEndsThoseThatAreThereAndThoseThatCome) {
  PreparationWatch watch;
  PreparationWatch::Watched before, after;
  before.deadline = after.deadline = std::chrono::steady_clock::now() + std::chrono::hours(1);
  watch.add(before);
  EXPECT_EQ(watch.count(), 1);
  watch.stop();
  watch.add(after);
  EXPECT_EQ(watch.count(), 2);
  for (auto* watched : {&before, &after}) {
    EXPECT_TRUE(watched->cancellation->cancelled() && watched->stopped && !watched->late);
    watch.remove(*watched);
  }
  EXPECT_EQ(watch.count(), 0);
}

// A request that takes seconds leaves the cores to the engine and to requests that take milliseconds.
TEST(PreparationWatch, LowersThePriorityOfAThreadThatComputesForLong) {
  PreparationWatch watch;
  const auto soon = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  const auto prepares = [&](const std::function<void()>& work) {
    PreparationWatch::Watched watched;
    watched.deadline = soon;
    watch.add(watched);
    work();
    watch.remove(watched);
    return priority_is_lowered();
  };
  const auto computes = [&] {
    while (!priority_is_lowered() && std::chrono::steady_clock::now() < soon) continue;
  };
  const auto waits = [&] { std::this_thread::sleep_for(20 * PreparationWatch::kOwnTime); };
  auto slow = std::async(std::launch::async, prepares, computes),
       quick = std::async(std::launch::async, prepares, waits);
  EXPECT_TRUE(slow.get());
  EXPECT_FALSE(quick.get());
}

}  // namespace
}  // namespace gemma4
