#include "engine/drafts/ngram.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <random>

namespace gemma4 {
namespace {

using Ids = std::vector<int32_t>;

TEST(Ngram, ProposesWhatFollowedBefore) {
  NgramIndex index(100);
  EXPECT_EQ(index.draft(Ids{1, 2, 3, 4, 5, 6, 1, 2}, 3), (Ids{3, 4, 5}));
  EXPECT_EQ(index.draft(Ids{1, 2, 3, 4, 5, 6, 1, 2, 9}, 3), Ids()) << "2 9 is new";
}

TEST(Ngram, TheLongestMatchCountsAndThenTheLatest) {
  NgramIndex longest(100), latest(100);
  EXPECT_EQ(longest.draft(Ids{7, 1, 2, 30, 8, 1, 2, 40, 7, 1, 2}, 1), (Ids{30}));
  EXPECT_EQ(latest.draft(Ids{5, 1, 2, 30, 5, 1, 2, 40, 6, 5, 1, 2}, 1), (Ids{40}));
}

TEST(Ngram, WhatRepeatsGoesOnRepeating) {
  NgramIndex index(100);
  EXPECT_EQ(index.draft(Ids{9, 1, 2, 3, 1, 2, 3}, 7), (Ids{1, 2, 3, 1, 2, 3, 1}));
  EXPECT_EQ(index.draft(Ids{9, 1, 2, 3, 1, 2, 3, 4, 4, 4}, 4), (Ids{4, 4, 4, 4}));
}

TEST(Ngram, ShortConversationsHaveNone) {
  NgramIndex index(1);
  EXPECT_EQ(index.draft(Ids{}, 3), Ids());
  EXPECT_EQ(index.draft(Ids{1}, 3), Ids());
  EXPECT_EQ(index.draft(Ids{1, 2}, 3), Ids());
  EXPECT_EQ(index.draft(Ids{1, 1, 1}, 0), Ids());
}

// Against a search of the whole conversation, token by token, in few buckets.
TEST(Ngram, EqualsASearch) {
  std::mt19937 random(3);
  for (int round = 0; round < 20; ++round) {
    NgramIndex index(16);
    Ids ids;
    for (int i = 0; i < 60; ++i) {
      ids.push_back(static_cast<int32_t>(random() % 4));
      size_t longest = 1, from = 0;
      const size_t end = ids.size();
      for (size_t at = end - 1; at >= 2; --at) {
        size_t same = 0;
        while (same < 16 && same < at && ids[at - 1 - same] == ids[end - 1 - same]) ++same;
        if (same > longest) longest = same, from = at;
      }
      const Ids drafts = index.draft(ids, 1);
      // Long chains are not walked to their end, so a later and shorter match may be taken.
      EXPECT_EQ(drafts.empty(), from == 0) << "at " << i;
      if (i >= 32 || from == 0) continue;
      EXPECT_EQ(drafts, Ids{ids[from]}) << "at " << i;
    }
  }
}

// The worst conversation: all positions are in one chain. 100,000 look-ups take well under a second.
TEST(Ngram, TakesBoundedTimeForAnyConversation) {
  NgramIndex index(1 << 18);
  Ids ids(100'000, 5);
  const auto start = std::chrono::steady_clock::now();
  index.extend(ids);
  for (int i = 0; i < 100'000; ++i) {
    ids.push_back(5);
    ASSERT_EQ(index.draft(ids, 1), Ids{5});
  }
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 5.0);
}

}  // namespace
}  // namespace gemma4
