#include "model/cache_plan.h"

#include <gtest/gtest.h>

#include "base/check.h"

namespace gemma4 {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

// Shapes of the 31B: 10 full layers, 50 sliding ones with a window of 1024; half-precision caches, pages of 64.
Config large_config() {
  Config config;
  config.window = 1024;
  config.max_positions = 262144;
  return config;
}

CacheMemory cache_of(int64_t free) {
  CacheMemory memory;
  memory.free = free;
  memory.page_bytes[kFull] = 64 * 51'200;
  memory.page_bytes[kSliding] = 64 * 819'200;
  return memory;
}

ModelOptions model_of(int seqs) {
  ModelOptions model;
  model.rows_max = 1120 + seqs;
  model.seqs_max = seqs;
  return model;
}

CacheWish wish_of(int seqs) {
  CacheWish wish;
  wish.positions = 262144;
  wish.windows = seqs;
  return wish;
}

int64_t pool_bytes(const ModelOptions& model, const CacheMemory& memory) {
  return model.pages[kFull] * memory.page_bytes[kFull] + model.pages[kSliding] * memory.page_bytes[kSliding];
}

TEST(CachePlan, ALotOfMemoryGivesTheModelsPositions) {
  const CacheMemory memory = cache_of(200 * kGiB);
  ModelOptions model = model_of(16);
  const CachePlan plan = plan_caches(wish_of(16), large_config(), memory, model);
  EXPECT_EQ(plan.max_seq_len, 262144);
  EXPECT_EQ(model.pages_per_seq[kFull], 4096);
  EXPECT_EQ(model.pages[kFull], 4096 + 2);  // all sequences share what one may take
  // A window and a page for each running and each kept sequence, and a chunk for one.
  EXPECT_EQ(model.pages[kSliding],
            live_pages(large_config(), 1136, 64) + 2 + 31 * (live_pages(large_config(), 1, 64) + 1));
  EXPECT_EQ(plan.bytes, pool_bytes(model, memory));
}

// For each amount of memory: what is planned fits beside the reserve, and a step more does not; the windows of other
// sequences take at most a quarter.
TEST(CachePlan, TheLongestContextIsTheLongestThatFits) {
  for (const int seqs : {1, 16}) {
    int last = 0;
    for (int64_t free = 8 * kGiB; free <= 90 * kGiB; free += kGiB / 2) {
      const CacheMemory memory = cache_of(free);
      ModelOptions model = model_of(seqs);
      const CachePlan plan = plan_caches(wish_of(seqs), large_config(), memory, model);
      EXPECT_GE(plan.max_seq_len, last);
      last = plan.max_seq_len;
      EXPECT_EQ(plan.max_seq_len % 1024, 0);
      const int64_t budget = free - memory_reserve(free);
      EXPECT_LE(pool_bytes(model, memory), budget) << free;
      EXPECT_GE(plan.tokens, plan.max_seq_len);
      EXPECT_LE(model.pages_per_seq[kSliding] + 2, model.pages[kSliding]);
      if (plan.max_seq_len == 262144) continue;
      const int64_t ring = (model.pages_per_seq[kSliding] + 2) * memory.page_bytes[kSliding];
      const int64_t more = (plan.max_seq_len + 1024) / 64 + 2;
      EXPECT_GT(more * memory.page_bytes[kFull], (budget - ring) * (seqs == 1 ? 1 : 3) / 4 - kGiB) << free;
    }
    EXPECT_EQ(last, 262144);
  }
}

TEST(CachePlan, NeverLessThanTheOldDefault) {
  for (const int64_t free : {int64_t{0}, kGiB / 2, kGiB, 2 * kGiB}) {
    ModelOptions model = model_of(16);
    const CachePlan plan = plan_caches(wish_of(16), large_config(), cache_of(free), model);
    EXPECT_EQ(plan.max_seq_len, 4096);
    EXPECT_EQ(model.pages[kFull], 64 + 2);  // one sequence, where 16 were taken before
    EXPECT_EQ(model.pages[kSliding], model.pages_per_seq[kSliding] + 2);
  }
  CacheWish short_model = wish_of(16);
  short_model.positions = 1500;
  ModelOptions model = model_of(16);
  EXPECT_EQ(plan_caches(short_model, large_config(), cache_of(200 * kGiB), model).max_seq_len, 1500);
  // Where the positions are few, as many sequences fit as before: 16 of 4096 tokens.
  short_model.positions = 4096;
  EXPECT_EQ(plan_caches(short_model, large_config(), cache_of(200 * kGiB), model).tokens, 16 * 4096);
}

TEST(CachePlan, AGivenLengthIsTakenAndThePoolIsWhatFits) {
  CacheWish wish = wish_of(16);
  wish.max_seq_len = 32768;
  ModelOptions model = model_of(16);
  EXPECT_EQ(plan_caches(wish, large_config(), cache_of(500 * kGiB), model).tokens, 16 * 32768);
  const CacheMemory memory = cache_of(40 * kGiB);
  const CachePlan plan = plan_caches(wish, large_config(), memory, model);
  EXPECT_EQ(plan.max_seq_len, 32768);
  EXPECT_GE(plan.tokens, 32768);
  EXPECT_LE(pool_bytes(model, memory), 36 * kGiB);
  wish.max_seq_len = 131072;  // more than fits: the caller's wish
  EXPECT_EQ(plan_caches(wish, large_config(), cache_of(2 * kGiB), model).tokens, 131072);
}

TEST(CachePlan, APoolOfAGivenSizeHoldsWhatItHolds) {
  CacheWish wish = wish_of(4);
  wish.memory = 6 * kGiB;
  const CacheMemory memory = cache_of(500 * kGiB);
  ModelOptions model = model_of(4);
  const CachePlan plan = plan_caches(wish, large_config(), memory, model);
  EXPECT_LE(plan.bytes, 6 * kGiB);
  EXPECT_GT(plan.bytes, 6 * kGiB - kGiB);
  EXPECT_GT(plan.max_seq_len, 4096);
  EXPECT_LT(plan.max_seq_len, 131072);
  wish.memory = kGiB;  // less than the ring of a whole chunk takes
  const CachePlan little = plan_caches(wish, large_config(), memory, model);
  EXPECT_EQ(little.max_seq_len, 1024);
  EXPECT_LE(little.bytes, kGiB);
  wish.memory = int64_t{900} << 20;
  try {
    plan_caches(wish, large_config(), memory, model);
    ADD_FAILURE() << "a sequence of 1024 tokens does not fit";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("--kv-memory 900 MiB is too little: one sequence of 1024 tokens takes "),
              std::string::npos)
        << error.what();
  }
  wish.memory = 0;
  wish.tokens = 10'000;
  const CachePlan tokens = plan_caches(wish, large_config(), memory, model);
  EXPECT_EQ(tokens.max_seq_len, 9 * 1024);
  EXPECT_EQ(tokens.tokens, 157 * 64);
  wish.tokens = 300;
  EXPECT_EQ(plan_caches(wish, large_config(), memory, model).max_seq_len, 300);
}

// Pages planned for all stages together fit in each beside its reserve; one that has no layers of a kind, or none at
// all, does not matter for that.
TEST(CachePlan, StagesAreAsLargeAsTheSmallest) {
  const CacheMemory whole = cache_of(0);
  const auto stage_of = [&](int sliding, int full, int64_t free) {
    CacheMemory stage;
    stage.free = free;
    stage.page_bytes[kSliding] = whole.page_bytes[kSliding] / 50 * sliding;
    stage.page_bytes[kFull] = whole.page_bytes[kFull] / 10 * full;
    return stage;
  };
  for (const int64_t free : {3, 6, 12, 40}) {
    for (const int64_t other : {3, 6, 12, 40}) {
      const std::vector<CacheMemory> stages = {stage_of(34, 6, free * kGiB), stage_of(16, 4, other * kGiB),
                                               stage_of(0, 0, 0)};
      const CacheMemory all = memory_of_stages(std::span(stages).first(2));
      EXPECT_EQ(all.page_bytes[kSliding], whole.page_bytes[kSliding]);
      EXPECT_EQ(all.page_bytes[kFull], whole.page_bytes[kFull]);
      EXPECT_EQ(memory_of_stages(stages).free, all.free);
      ModelOptions model = model_of(4);
      const CachePlan plan = plan_caches(wish_of(4), large_config(), all, model);
      if (plan.max_seq_len == kLeastDefaultSeqLen) continue;  // the least, whether it fits or not
      double fullest = 0;
      for (const CacheMemory& stage : std::span(stages).first(2)) {
        const auto budget = static_cast<double>(stage.free - memory_reserve(stage.free));
        const double used = static_cast<double>(pool_bytes(model, stage)) / budget;
        EXPECT_LE(used, 1.0);
        fullest = std::max(fullest, used);
      }
      if (plan.max_seq_len < 262144) {
        EXPECT_GT(fullest, 0.7) << free << ", " << other;
      }
    }
  }
  // One stage is itself.
  const CacheMemory one = cache_of(20 * kGiB);
  EXPECT_NEAR(static_cast<double>(memory_of_stages({&one, 1}).free), static_cast<double>(one.free), 16);
}

}  // namespace
}  // namespace gemma4
