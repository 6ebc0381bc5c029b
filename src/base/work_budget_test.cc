#include "base/work_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace gemma4 {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(WorkBudget, StepsAreLimited) {
  WorkBudget budget("the schema", {.steps = 10});
  budget.charge(10);
  EXPECT_THAT([&] { budget.charge(1); },
              ThrowsMessage<BudgetError>("the schema needs more work than one request may take"));
  EXPECT_THROW(budget.charge(0), BudgetError);
}

TEST(WorkBudget, EarnedStepsAddToTheLimit) {
  WorkBudget budget("x", {.steps = 10});
  budget.earn(5);
  budget.charge(15);
  EXPECT_THROW(budget.charge(1), BudgetError);
  WorkBudget unlimited("x");
  unlimited.earn(5);
  unlimited.charge(~uint64_t{0} >> 1);
}

TEST(WorkBudget, BytesAreWhatIsHeldAtOneTime) {
  WorkBudget budget("x", {.bytes = 100});
  for (int i = 0; i < 10; ++i) {
    budget.hold(100);
    budget.release(100);
  }
  budget.hold(60);
  EXPECT_THAT([&] { budget.hold(41); }, ThrowsMessage<BudgetError>(HasSubstr("memory")));
  budget.hold(40);
  EXPECT_EQ(budget.bytes_held(), 100u);
}

TEST(WorkBudget, CancellingReachesEveryBudgetOfTheRequest) {
  const CancelFlag flag = std::make_shared<std::atomic<bool>>(false);
  WorkBudget schema("the schema", {}, flag), picture("a picture", {}, flag);
  schema.charge(1);
  picture.cancel();
  EXPECT_TRUE(schema.cancelled());
  EXPECT_THROW(schema.charge(1), CancelledError);
}

TEST(WorkBudget, TheDeadlineIsSeenWhileCharging) {
  WorkBudget budget("x", {.deadline = std::chrono::steady_clock::now() - std::chrono::seconds(1)});
  const auto work = [&] {
    for (int i = 0; i < 1000; ++i) budget.charge(1000);
  };
  EXPECT_THAT(work, ThrowsMessage<BudgetError>(HasSubstr("time")));
}

TEST(WorkBudget, ThreadsShareOneBudget) {
  WorkBudget budget("x", {.steps = 40000});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10000; ++i) budget.charge(1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(budget.steps_used(), 40000u);
  EXPECT_THROW(budget.charge(1), BudgetError);
}

}  // namespace
}  // namespace gemma4
