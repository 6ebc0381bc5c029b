// The collective ops over NCCL: on one GPU, where they must change nothing, and on as many as there are.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "backend/backend.h"
#include "backend/cuda/comm/nccl_abi.h"
#include "backend/ranks.h"
#include "base/bf16.h"

#if __has_include(<nccl.h>)
#include <nccl.h>

namespace gemma4::cuda::nccl {
static_assert(kSuccess == int{ncclSuccess} && int{kSum} == int{ncclSum});
static_assert(int{kFloat32} == int{ncclFloat32} && int{kBFloat16} == int{ncclBfloat16});
static_assert(sizeof(UniqueId) == sizeof(ncclUniqueId));
static_assert(sizeof(Comm) == sizeof(ncclComm_t) && sizeof(Type) == sizeof(ncclDataType_t));
static_assert(sizeof(Result) == sizeof(ncclResult_t) && sizeof(Reduction) == sizeof(ncclRedOp_t));
}  // namespace gemma4::cuda::nccl
#endif

namespace gemma4 {
namespace {

class NcclTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    try {
      ranks_ = Ranks(make_cuda_ranks(GetParam()));
    } catch (const DeviceError&) {
      throw;
    } catch (const Error& error) {
      GTEST_SKIP() << "NOT TESTED over " << GetParam() << " GPUs: " << error.what();
    }
  }

  // Rank r's values: whole numbers that bf16 and every sum of them hold exactly.
  static std::vector<float> values(int rank, int64_t count) {
    std::vector<float> v(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) v[static_cast<size_t>(i)] = static_cast<float>((i + 1) % 16 * (rank + 1) % 16);
    return v;
  }
  static Tensor put(Backend& be, DType type, int64_t rows, int64_t cols, const std::vector<float>& v) {
    const Tensor t = be.alloc(type, {rows, cols});
    std::vector<uint16_t> bits;
    for (const float x : v) bits.push_back(float_to_bf16(x));
    type == DType::kF32 ? be.write(t, v.data()) : be.write(t, bits.data());
    return t;
  }
  static std::vector<float> get(Backend& be, Tensor t) {
    std::vector<float> v(static_cast<size_t>(t.size()));
    std::vector<uint16_t> bits(v.size());
    if (t.dtype == DType::kF32) {
      be.read(v.data(), t);
    } else {
      be.read(bits.data(), t);
      for (size_t i = 0; i < v.size(); ++i) v[i] = bf16_to_float(bits[i]);
    }
    return v;
  }

  Ranks ranks_;
};

TEST_P(NcclTest, AllReduceSumsEveryRankOnce) {
  for (const DType type : {DType::kBF16, DType::kF32}) {
    for (const int64_t rows : {1, 3, 16, 700}) {
      const int64_t cols = 5376, count = rows * cols;
      std::vector<float> want(static_cast<size_t>(count));
      for (int r = 0; r < ranks_.size(); ++r) {
        const auto v = values(r, count);
        for (size_t i = 0; i < want.size(); ++i) want[i] += v[i];
      }
      ranks_.run([&](int r) {
        const Tensor x = put(ranks_[r], type, rows, cols, values(r, count));
        ranks_[r].all_reduce(x);
        EXPECT_EQ(get(ranks_[r], x), want) << "rank " << r << ", " << rows << " rows";
        ranks_[r].release(x);
      });
    }
  }
}

// In a graph that is captured once and launched again, each launch must reduce what x holds at that time.
TEST_P(NcclTest, AllReduceIsReplayed) {
  ranks_.run([&](int r) {
    Backend& be = ranks_[r];
    const Tensor x = be.alloc(DType::kBF16, {2, 64}), y = be.alloc(DType::kBF16, {2, 64});
    for (int step = 1; step <= 5; ++step) {
      be.write(x, std::vector<uint16_t>(128, float_to_bf16(static_cast<float>(step))).data());
      be.replay(77, [&] {
        be.all_reduce(x);
        be.add(y, x, 1.0f);
      });
      EXPECT_EQ(get(be, x), std::vector<float>(128, static_cast<float>(step * ranks_.size())));
    }
    EXPECT_EQ(get(be, y), std::vector<float>(128, static_cast<float>(15 * ranks_.size())));
  });
}

TEST_P(NcclTest, BroadcastAndGatherColumns) {
  const int n = ranks_.size();
  std::vector<int64_t> begins;  // uneven: 1000 + 128 r columns
  for (int64_t r = 0; r <= n; ++r) begins.push_back(1000 * r + 64 * r * (r - 1));
  const int64_t cols = begins.back();
  ranks_.run([&](int r) {
    const Tensor x = put(ranks_[r], DType::kF32, 3, cols, std::vector<float>(static_cast<size_t>(3 * cols), r + 1.0f));
    ranks_[r].gather_columns(x, begins);
    if (r == 0) {
      const auto got = get(ranks_[0], x);
      for (int64_t i = 0; i < 3 * cols; ++i) {
        const auto owner = std::upper_bound(begins.begin(), begins.end(), i % cols) - begins.begin();
        ASSERT_EQ(got[static_cast<size_t>(i)], static_cast<float>(owner)) << i;
      }
    }
    const Tensor y = put(ranks_[r], DType::kF32, 40, 96, std::vector<float>(40 * 96, r + 1.0f));
    ranks_[r].broadcast(y);
    EXPECT_EQ(get(ranks_[r], y), std::vector<float>(40 * 96, 1.0f));
  });
}

TEST_P(NcclTest, ARankThatFailsEndsTheOthers) {
  if (ranks_.size() == 1) GTEST_SKIP() << "one rank waits for no other";
  const auto start = std::chrono::steady_clock::now();
  const auto work = [&](int r) {
    const Tensor x = ranks_[r].alloc(DType::kBF16, {1, 5376});
    ranks_[r].all_reduce(x);
    ranks_[r].sync();
    if (r == 1) throw DeviceError("rank 1 fell off the bus");
    for (int i = 0; i < 3; ++i) {  // waits on the device for a rank that has failed
      ranks_[r].all_reduce(x);
      ranks_[r].sync();
    }
  };
  try {
    ranks_.run(work);
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_STREQ(error.what(), "rank 1 fell off the bus");
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  EXPECT_THROW(ranks_[0].all_reduce(ranks_[0].alloc(DType::kBF16, {1, 8})), DeviceError);
}

INSTANTIATE_TEST_SUITE_P(Gpus, NcclTest, testing::Values(1, 2, 4, 8));

TEST(Nccl, RefusesMoreGpusThanThereAre) { EXPECT_THROW(make_cuda_ranks(65), Error); }

}  // namespace
}  // namespace gemma4
