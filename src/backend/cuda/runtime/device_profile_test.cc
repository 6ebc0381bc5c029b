#include "backend/cuda/runtime/device_profile.h"

#include <gtest/gtest.h>

#include "base/check.h"

namespace gemma4::cuda {
namespace {

TEST(DeviceProfile, FollowsTheComputeCapability) {
  EXPECT_EQ(profile_of(8, 0).name, "sm80");
  EXPECT_EQ(profile_of(8, 6).name, "sm86");
  EXPECT_EQ(profile_of(8, 7).name, "sm80");
  EXPECT_EQ(profile_of(8, 9).name, "sm89");
  EXPECT_EQ(profile_of(9, 0).name, "sm90");
  EXPECT_EQ(profile_of(10, 3).name, "sm100");
  EXPECT_EQ(profile_of(12, 1).name, "sm120");
  EXPECT_THROW(profile_of(7, 5), Error);
  EXPECT_TRUE(profile_of(9, 0).wgmma);
  EXPECT_FALSE(profile_of(10, 0).wgmma);
  EXPECT_TRUE(profile_of(12, 0).bulk_copies);
  EXPECT_FALSE(profile_of(8, 9).bulk_copies);
  EXPECT_EQ(profile_of(8, 9).shared_max, 99 << 10);
}

TEST(DeviceProfile, LowersAndNeverRaises) {
  const DeviceProfile hopper = profile_of(9, 0), ada = profile_of(8, 9);
  EXPECT_EQ(lowered(hopper, "").name, "sm90");
  const DeviceProfile as_ada = lowered(hopper, "sm89");
  EXPECT_EQ(as_ada.shared_max, 99 << 10);
  EXPECT_FALSE(as_ada.bulk_copies || as_ada.wgmma || as_ada.dependent_launch);
  const DeviceProfile as_hopper = lowered(ada, "sm90");
  EXPECT_EQ(as_hopper.shared_max, 99 << 10);
  EXPECT_FALSE(as_hopper.bulk_copies || as_hopper.wgmma || as_hopper.dependent_launch);
  EXPECT_TRUE(lowered(hopper, "sm120").bulk_copies);
  for (const char* wrong : {"sm61", "sm86:", "sm86:x", "sm86:0", "sm86:-1", ":82", "sm86:82:1"}) {
    EXPECT_THROW(lowered(hopper, wrong), Error) << wrong;
  }
  EXPECT_EQ(lowered(hopper, "sm86:82").sms, 82);
  EXPECT_EQ(lowered(hopper, "sm120:170").sms, 132);
  EXPECT_EQ(lowered(hopper, "sm86").sms, 132);
  EXPECT_EQ(shared_claim(hopper, 100 << 10), 100 << 10);
  EXPECT_EQ(shared_claim(as_ada, 99 << 10), 227 << 10);  // alone on an SM here, too
  EXPECT_EQ(shared_claim(ada, 99 << 10), 99 << 10);
}

}  // namespace
}  // namespace gemma4::cuda
