#include "engine/drafts/forced.h"

#include <gtest/gtest.h>

#include <vector>

namespace gemma4 {
namespace {

TEST(ForcedToken, IsTheOnlyOne) {
  std::vector<uint32_t> mask(4);
  EXPECT_EQ(forced_token(mask), -1);
  for (const int32_t token : {0, 31, 32, 127}) {
    mask.assign(4, 0);
    mask[static_cast<size_t>(token) / 32] = 1u << token % 32;
    EXPECT_EQ(forced_token(mask), token);
    mask[1] |= 1u << 7;
    EXPECT_EQ(forced_token(mask), -1) << token;
  }
}

}  // namespace
}  // namespace gemma4
