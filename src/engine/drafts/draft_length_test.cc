#include "engine/drafts/draft_length.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace gemma4 {
namespace {

StepTimes times_of(const std::vector<std::pair<int, double>>& measured) {
  StepTimes times;
  for (const auto& [rows, ms] : measured) {
    for (int i = 0; i < 8; ++i) times.add(rows, ms);
  }
  return times;
}

std::vector<int> plan(const std::vector<double>& rates, const StepTimes& times, int rows_max = 64,
                      double draft_ms = 0) {
  const std::vector<int> most(rates.size(), kDraftsMax);
  return plan_drafts(rates, most, {rows_max, draft_ms}, times);
}

TEST(StepTimes, TheFirstStepsOfACountAreNotBelieved) {
  StepTimes times;
  times.add(3, 100);  // records a graph
  EXPECT_EQ(times.predict(3), 0) << "not known yet";
  for (int i = 0; i < 5; ++i) times.add(3, 10);
  EXPECT_EQ(times.predict(3), 10);
}

TEST(StepTimes, OtherCountsFollowFromThoseMeasured) {
  const StepTimes times = times_of({{2, 10}, {8, 16}});
  EXPECT_EQ(times.predict(1), 10);
  EXPECT_EQ(times.predict(5), 10);
  EXPECT_EQ(times.predict(8), 16);
  EXPECT_EQ(times.predict(10), 18);
  EXPECT_EQ(times_of({{2, 10}}).predict(10), 10);
}

TEST(StepTimes, WhatIsOldIsForgotten) {
  StepTimes times = times_of({{1, 10}, {4, 500}});
  for (int i = 0; i < 3000; ++i) times.add(1, 10);
  EXPECT_EQ(times.predict(4), 10);
}

TEST(AcceptRate, FollowsWhatIsAccepted) {
  AcceptRate good, bad;
  for (int i = 0; i < 50; ++i) good.add(4, 4), bad.add(0, 4);
  EXPECT_GT(good.value(), 0.98);
  EXPECT_LT(bad.value(), 0.02);
  for (int i = 0; i < 300; ++i) bad.add(0, 0);
  EXPECT_GT(bad.value(), 0.5) << "drafts are tried again after a while";
}

TEST(AcceptRate, CountsTheDraftsBeforeTheFirstRejectedOne) {
  AcceptRate rate;
  for (int i = 0; i < 200; ++i) rate.add(3, 8);
  EXPECT_NEAR(rate.value(), 0.75, 1e-6);
}

TEST(PlanDrafts, AFewRowsMoreCostNothing) {
  const StepTimes times = times_of({{1, 10}, {8, 10}, {9, 30}});
  EXPECT_EQ(plan({0.9}, times), std::vector<int>{7});
}

TEST(PlanDrafts, NothingIsDraftedWhereItDoesNotPay) {
  const StepTimes times = times_of({{1, 10}, {2, 20}, {3, 30}, {4, 40}, {5, 50}});
  EXPECT_EQ(plan({0.9}, times), std::vector<int>{0});
  const StepTimes full = times_of({{4, 10}, {5, 14}, {6, 18}, {8, 26}});
  EXPECT_EQ(plan({0.8, 0.8, 0.8, 0.8}, full), (std::vector<int>{0, 0, 0, 0}));
}

TEST(PlanDrafts, RowsGoToTheSequenceWhoseDraftsAreAccepted) {
  const StepTimes times = times_of({{2, 10}, {8, 10}, {9, 100}});
  const std::vector<int> drafts = plan({0.95, 0.2}, times);
  EXPECT_EQ(drafts[0] + drafts[1], 6);
  EXPECT_GE(drafts[0], 5);
}

// The rate of the plan is the best of all counts, by the formula of the header.
TEST(PlanDrafts, OneSequenceGetsTheBestCount) {
  const StepTimes times =
      times_of({{1, 10}, {2, 10.5}, {3, 11.5}, {4, 12}, {5, 16}, {6, 17}, {7, 18}, {8, 19}, {17, 40}});
  for (const double rate : {0.1, 0.3, 0.5, 0.7, 0.9, 0.99}) {
    for (const double draft_ms : {0.0, 0.5, 2.0}) {
      int best = 0;
      double most = 0;
      for (int k = 0; k <= kDraftsMax; ++k) {
        double tokens = 0;
        for (int i = 0; i <= k; ++i) tokens += std::pow(rate, i);
        const double per_ms = tokens / (times.predict(1 + k) + k * draft_ms);
        if (per_ms > most) most = per_ms, best = k;
      }
      EXPECT_EQ(plan({rate}, times, 64, draft_ms), std::vector<int>{best}) << rate << ", " << draft_ms << " ms";
    }
  }
}

TEST(PlanDrafts, KeepsTheLimits) {
  const std::vector<double> rates(10, 0.99);
  std::vector<int> most(10, 3);
  most[4] = 0;
  const std::vector<int> drafts = plan_drafts(rates, most, {20, 0}, StepTimes());
  EXPECT_EQ(std::accumulate(drafts.begin(), drafts.end(), 0), 20);
  for (size_t i = 0; i < drafts.size(); ++i) EXPECT_LE(drafts[i], most[i]);
}

}  // namespace
}  // namespace gemma4
