#include "backend/kv_cache.h"

#include <gtest/gtest.h>

namespace gemma4 {
namespace {

std::vector<Row> chunk(int32_t seq, int32_t begin, int32_t count, int32_t window) {
  std::vector<Row> rows;
  for (int32_t pos = begin; pos < begin + count; ++pos) rows.push_back({seq, pos, std::max(0, pos - window + 1), pos});
  return rows;
}

TEST(KvCache, CountsThePositionsThatAChunkWrites) {
  EXPECT_EQ(positions_written({}), 0);
  EXPECT_EQ(positions_written(chunk(0, 0, 8, 4)), 8);
  EXPECT_EQ(positions_written(chunk(3, 100, 9, 4)), 9);
}

TEST(KvCache, CountsTheWindowBeforeTheChunkToo) {
  EXPECT_EQ(positions_held({}), 0);
  EXPECT_EQ(positions_held(chunk(0, 0, 8, 4)), 8);
  EXPECT_EQ(positions_held(chunk(0, 100, 9, 4)), 12);      // 97 .. 108
  EXPECT_EQ(positions_held(chunk(0, 100, 1, 1000)), 101);  // a full layer keeps everything
}

TEST(KvCache, CountsEachSequenceAlone) {
  std::vector<Row> rows = chunk(0, 0, 3, 4);
  for (const Row& row : chunk(5, 500, 2, 4)) rows.push_back(row);
  for (const Row& row : chunk(0, 3, 3, 4)) rows.push_back(row);  // goes on after another sequence's rows
  EXPECT_EQ(positions_written(rows), 6);
  EXPECT_EQ(positions_held(rows), 6);
}

}  // namespace
}  // namespace gemma4
