// Which ops the recorder takes, and what it makes of them. No GPU is needed: while a graph is captured, a list that is
// not on the device runs by its fallbacks, which here append marks to a list.
#include <gtest/gtest.h>

#include <set>

#include "backend/cuda/megakernel/recorder.h"

namespace gemma4::cuda {
namespace {

class CudaOpRecorder : public testing::Test {
 protected:
  static MegakernelWorkspace workspace(int world) {
    MegakernelWorkspace w = {};
    w.decode.blocks = 132, w.decode.shared_max = 227 << 10;
    w.ranks.world = world;
    w.ranks.receive[0] = reinterpret_cast<uint32_t*>(0x3000);
    w.channels = reinterpret_cast<uint32_t*>(0x4000);
    return w;
  }

  // Addresses that are never read.
  Tensor tensor(DType type, int64_t cols, int64_t rows = 1) {
    return Tensor(reinterpret_cast<void*>(next_ += 1 << 20), type, {rows, cols});
  }
  DeviceMatrix matrix(int64_t rows, int64_t cols, bool paired = false, Layout layout = Layout::kInt4G32) {
    DeviceMatrix w;
    w.layout = layout, w.rows = rows, w.cols = cols, w.paired = paired;
    w.data = reinterpret_cast<void*>(next_ += 1 << 20);
    return w;
  }
  OpRecorder::Fallback mark(int what) {
    return [this, what](cudaStream_t) { ran_.push_back(what); };
  }

  // The ops of a sliding layer in the order of run_layer(). Each returns whether it was taken.
  bool qkv() { return recorder_.linear(qkv_, h_, matrix(16384, 5376), false, mark(0)); }
  bool qk_norm_rope_cache(int page = 64, int64_t q_heads = 32) {
    KvCacheView kv;
    kv.heads = 16, kv.dim = kv.row = 256, kv.table_page = page;
    kv.v = reinterpret_cast<void*>(0x1000), kv.table = reinterpret_cast<const int32_t*>(0x2000);
    kv_ = kv;
    const Tensor q = qkv_.columns(0, q_heads * 256).split(q_heads, 256);
    const Tensor k = qkv_.columns(8192, 4096).split(16, 256), v = qkv_.columns(12288, 4096).split(16, 256);
    const Tensor norm = tensor(DType::kF32, 256);
    return recorder_.qk_norm_rope_cache(query_, q, k, v, {norm, norm, 1e-6f}, tensor(DType::kI32, 1),
                                        Rope{tensor(DType::kF32, 128), 256}, kv_, rows_, mark(1));
  }
  bool attention(const Tensor& query) { return recorder_.attention(o_, query, kv_, rows_, mark(2)); }
  bool o_proj() { return recorder_.linear(y_, o_, matrix(5376, 8192), false, mark(3)); }
  bool add_rms_norm() {
    return recorder_.add_rms_norm(h_, x_, y_, tensor(DType::kF32, 5376), 1, tensor(DType::kF32, 5376), 1e-6f, mark(4));
  }
  bool gate_up() { return recorder_.linear(act_, h_, matrix(43008, 5376, true), true, mark(5)); }
  bool down() { return recorder_.linear(y_, act_, matrix(5376, 21504), false, mark(6)); }

  std::vector<int> flushed() {
    ran_.clear();
    recorder_.flush(true, nullptr);
    return ran_;
  }

  uintptr_t next_ = 1 << 20;
  std::vector<int> ran_;
  OpRecorder recorder_{workspace(1)};
  KvCacheView kv_;
  const Tensor h_ = tensor(DType::kBF16, 5376), qkv_ = tensor(DType::kF32, 16384), query_ = tensor(DType::kF16, 8192),
               o_ = tensor(DType::kBF16, 8192), y_ = tensor(DType::kF32, 5376), x_ = tensor(DType::kF32, 5376),
               act_ = tensor(DType::kBF16, 21504), rows_ = tensor(DType::kI32, 4);
};

TEST_F(CudaOpRecorder, TakesALayerAndKeepsItsOrder) {
  recorder_.begin();
  EXPECT_TRUE(qkv() && qk_norm_rope_cache() && attention(query_) && o_proj() && add_rms_norm() && gate_up() && down() &&
              add_rms_norm());
  EXPECT_TRUE(qkv());  // of the next layer, from the norm
  EXPECT_EQ(flushed(), (std::vector{0, 1, 2, 3, 4, 5, 6, 4, 0}));
  EXPECT_EQ(flushed(), std::vector<int>()) << "launched twice";
}

TEST_F(CudaOpRecorder, TakesNothingOutsideAStep) {
  EXPECT_FALSE(qkv() || add_rms_norm() || gate_up());
  recorder_.begin();
  EXPECT_TRUE(qkv());
  recorder_.end(true, nullptr);
  EXPECT_EQ(ran_, std::vector{0});
  EXPECT_FALSE(qkv());
}

TEST_F(CudaOpRecorder, FailedStepLeavesNothing) {
  recorder_.begin();
  EXPECT_TRUE(qkv() && qk_norm_rope_cache());
  recorder_.discard();
  EXPECT_FALSE(recorder_.open());
  EXPECT_EQ(flushed(), std::vector<int>());
  recorder_.begin();
  EXPECT_TRUE(qkv()) << "the attention of the step before is still pending";
}

TEST_F(CudaOpRecorder, LeavesUnsupportedOps) {
  recorder_.begin();
  const auto linear = [&](const Tensor& out, const Tensor& x, const DeviceMatrix& w, bool geglu) {
    return recorder_.linear(out, x, w, geglu, mark(9));
  };
  EXPECT_FALSE(linear(tensor(DType::kF32, 16384, 2), tensor(DType::kBF16, 5376, 2), matrix(16384, 5376), false));
  EXPECT_FALSE(linear(qkv_, h_, matrix(16384, 5376, false, Layout::kInt8G32), false));
  EXPECT_FALSE(linear(qkv_, h_, matrix(16384, 5376, true), false)) << "interleaved rows, no GeGLU";
  EXPECT_FALSE(linear(y_, tensor(DType::kBF16, 64 * 900), matrix(5376, 64 * 900), false)) << "more columns than fit";
  EXPECT_FALSE(qk_norm_rope_cache()) << "without a GEMV before";
  EXPECT_TRUE(qkv());
  EXPECT_FALSE(linear(y_, o_, matrix(5376, 8192, false, Layout::kQ4_0), false)) << "another layout";
  EXPECT_FALSE(qk_norm_rope_cache(24)) << "tiles of 16 keys would cross pages";
  EXPECT_TRUE(qk_norm_rope_cache());
  EXPECT_FALSE(o_proj()) << "the attention is pending";
  EXPECT_FALSE(attention(tensor(DType::kF16, 8192))) << "other queries";
  EXPECT_EQ(flushed(), (std::vector{0, 1}));
}

TEST_F(CudaOpRecorder, GemvAfterNormReadsItsOutput) {
  recorder_.begin();
  EXPECT_TRUE(o_proj() && add_rms_norm());
  EXPECT_FALSE(recorder_.linear(act_, tensor(DType::kBF16, 5376), matrix(43008, 5376, true), true, mark(5)));
  EXPECT_TRUE(gate_up());
}

TEST_F(CudaOpRecorder, AllReduceFollowsItsGemv) {
  recorder_.begin();
  EXPECT_TRUE(o_proj());
  EXPECT_FALSE(recorder_.all_reduce(y_, mark(7))) << "one rank";
  OpRecorder ranks(workspace(2));
  ranks.begin();
  EXPECT_FALSE(ranks.all_reduce(y_, mark(7))) << "without a GEMV before";
  EXPECT_TRUE(ranks.linear(y_, o_, matrix(5376, 8192), false, mark(3)));
  EXPECT_FALSE(ranks.all_reduce(o_, mark(7))) << "of another tensor";
  EXPECT_TRUE(ranks.all_reduce(y_, mark(7)));
  EXPECT_FALSE(ranks.linear(act_, y_, matrix(43008, 5376, true), true, mark(5)))
      << "only a norm can read an all-reduce";
  ran_.clear();
  ranks.flush(true, nullptr);
  EXPECT_EQ(ran_, (std::vector{3, 7}));
  const Tensor other = tensor(DType::kF32, 2560);
  EXPECT_TRUE(ranks.linear(other, h_, matrix(2560, 5376), false, mark(3)));
  EXPECT_FALSE(ranks.all_reduce(other, mark(7))) << "stale values in the receive buffer would pass for new ones";
}

// Two layers: from GEMV to attention to GEMV, and from GeGLU to GEMV, values pass through channels; in the second layer
// through the same channels, one epoch later. Norms read all-reduces.
TEST_F(CudaOpRecorder, ValuesPassThroughChannels) {
  recorder_.begin();
  for (int layer = 0; layer < 2; ++layer) {
    ASSERT_TRUE(qkv() && qk_norm_rope_cache() && attention(query_) && o_proj() && add_rms_norm() && gate_up() &&
                down() && add_rms_norm());
  }
  const auto& ops = recorder_.instructions();
  ASSERT_EQ(ops.size(), 14u);
  const auto same = [](const FlaggedChannel& a, const FlaggedChannel& b, int epoch) {
    return a.values && a.values == b.values && a.index == b.index && a.epoch == epoch && b.epoch == epoch;
  };
  for (int layer = 0; layer < 2; ++layer) {
    const Instruction* op = &ops[static_cast<size_t>(7 * layer)];
    EXPECT_TRUE(same(op[0].gemv.to, op[1].attention.from, layer + 1));
    EXPECT_EQ(op[1].attention.q, op[0].gemv.to.values);
    EXPECT_EQ(op[1].attention.v, op[0].gemv.to.values + 12288);
    EXPECT_TRUE(same(op[1].attention.to, op[2].gemv.from, layer + 1));
    EXPECT_TRUE(same(op[4].gemv.to, op[5].gemv.from, layer + 1));
    const std::set<int> channels = {0, op[0].gemv.to.index, op[1].attention.to.index, op[4].gemv.to.index};
    EXPECT_EQ(channels.size(), 4u) << "0 is that of all-reduces";
    EXPECT_EQ(op[2].gemv.all_reduce, 2 * layer + 1);
    EXPECT_EQ(op[3].rms_norm.all_reduce, 2 * layer + 1);
    EXPECT_EQ(op[5].gemv.all_reduce, 2 * layer + 2);
    EXPECT_EQ(op[6].rms_norm.all_reduce, 2 * layer + 2);
    EXPECT_FALSE(op[0].gemv.second_partials || op[4].gemv.second_partials) << "the partials of two GEMVs are separate";
    EXPECT_TRUE(op[2].gemv.second_partials && op[5].gemv.second_partials);
  }
}

// A CTA may still have to read the values that a second use would overwrite.
TEST_F(CudaOpRecorder, ChannelIsUsedOnceBetweenBarriers) {
  recorder_.begin();
  ASSERT_TRUE(qkv() && qk_norm_rope_cache(64, 16) && attention(query_));
  ASSERT_TRUE(recorder_.linear(qkv_, o_, matrix(16384, 4096), false, mark(3)) && qk_norm_rope_cache(64, 16));
  EXPECT_NE(recorder_.instructions()[1].attention.from.values, nullptr);
  EXPECT_EQ(recorder_.instructions()[3].attention.from.values, nullptr) << "at a barrier";
}

TEST_F(CudaOpRecorder, ThirdGemvWaitsForAllBlocks) {  // the workspace has room for the partials of two
  recorder_.begin();
  const Tensor a = tensor(DType::kBF16, 5376), b = tensor(DType::kBF16, 2688);
  ASSERT_TRUE(recorder_.linear(a, h_, matrix(10752, 5376, true), true, mark(0)) &&
              recorder_.linear(b, a, matrix(5376, 5376, true), true, mark(1)) &&
              recorder_.linear(a, b, matrix(10752, 2688, true), true, mark(2)) &&
              recorder_.linear(b, a, matrix(5376, 5376, true), true, mark(3)));
  const auto& ops = recorder_.instructions();
  EXPECT_NE(ops[1].gemv.from.values, nullptr);
  EXPECT_EQ(ops[2].gemv.from.values, nullptr) << "at a barrier";
  EXPECT_NE(ops[3].gemv.from.values, nullptr) << "after it";
}

TEST_F(CudaOpRecorder, NormAfterGemvOfAFewBlocksWaitsForAllBlocks) {
  recorder_.begin();
  const Tensor y = tensor(DType::kF32, 128), x = tensor(DType::kF32, 128), h = tensor(DType::kBF16, 128);
  ASSERT_TRUE(recorder_.linear(y, tensor(DType::kBF16, 3200), matrix(128, 3200), false, mark(0)));  // 50 units
  ASSERT_TRUE(recorder_.add_rms_norm(h, x, y, tensor(DType::kF32, 128), 1, tensor(DType::kF32, 128), 1e-6f, mark(1)));
  EXPECT_EQ(recorder_.instructions()[0].gemv.all_reduce, 0);
  EXPECT_EQ(recorder_.instructions()[1].rms_norm.all_reduce, 0);
}

// Every work unit falls to one CTA, the numbers of counted units differ by one at most, the input of every range fits,
// and row_tile_of() needs no division.
TEST_F(CudaOpRecorder, DividesEveryGemv) {
  const std::vector<std::pair<int64_t, int64_t>> shapes = {
      {16384, 5376}, {18432, 5376}, {5376, 16384}, {43008, 5376}, {5376, 21504}, {5376, 10752}, {262144, 5376},
      {8192, 5376},  {5376, 4096},  {128, 64},     {200, 64},     {16896, 64},   {16, 6912},    {5376, 5376}};
  for (const auto& [rows, cols] : shapes) {
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols));
    recorder_.begin();
    ASSERT_TRUE(
        recorder_.linear(tensor(DType::kF32, rows), tensor(DType::kBF16, cols), matrix(rows, cols), false, mark(0)));
    const GemvInstruction op = recorder_.instructions().back().gemv;
    recorder_.discard();
    const int units = op.row_tiles * op.col_tiles;
    // Where several CTAs share a row tile, the one that has its end gets more to do, until their partials have come.
    EXPECT_EQ(op.spare, units / 132 < op.col_tiles ? spare_units(units / 132) : 0);
    EXPECT_EQ(op.first_unit(0), 0);
    EXPECT_EQ(op.first_unit(132), units);
    for (int block = 0; block < 132; ++block) {
      const int begin = op.first_unit(block), end = op.first_unit(block + 1);
      const int counted = end - begin - op.spare * (end / op.col_tiles - begin / op.col_tiles);
      ASSERT_GE(counted, op.each);
      ASSERT_LE(counted, op.each + (block < op.more ? 1 : 0));
      ASSERT_LE(op.whole ? op.col_tiles : end - begin, megakernel_input_tiles(workspace(1).decode));
      ASSERT_TRUE(op.whole || end - begin <= op.col_tiles) << "a range of x holds each column once";
    }
    for (int unit = 0; unit <= units; ++unit) ASSERT_EQ(op.row_tile_of(unit), unit / op.col_tiles) << unit;
  }
}

// GPUs with fewer SMs than Hopper's 132 hold more of an input in each CTA: A100, RTX 3090, RTX 4090, L40S, RTX 5090.
TEST_F(CudaOpRecorder, TakesTheGemvsOfThe31BOnOtherCards) {
  for (const auto& [sms, shared] : std::vector<std::pair<int, int>>{
           {108, 163 << 10}, {82, 99 << 10}, {128, 99 << 10}, {142, 99 << 10}, {170, 99 << 10}}) {
    MegakernelWorkspace w = workspace(1);
    w.decode.blocks = sms, w.decode.shared_max = shared;
    OpRecorder recorder(w, [](const InstructionList&) {});
    for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
             {16384, 5376}, {5376, 8192}, {18432, 5376}, {5376, 16384}, {5376, 21504}}) {
      recorder.begin();
      EXPECT_TRUE(
          recorder.linear(tensor(DType::kF32, rows), tensor(DType::kBF16, cols), matrix(rows, cols), false, mark(0)))
          << sms << " SMs, " << rows << " x " << cols;
      recorder.discard();
    }
  }
}

// A GEMV beyond the range where row_tile_of() is exact is left to its own kernel.
TEST_F(CudaOpRecorder, LeavesGemvsThatAreTooLarge) {
  recorder_.begin();
  const int64_t rows = 450000 * 128, cols = 100 * 64;  // 45 million units times 100 tiles: more than 2^32
  EXPECT_FALSE(
      recorder_.linear(tensor(DType::kF32, rows), tensor(DType::kBF16, cols), matrix(rows, cols), false, mark(0)));
}

}  // namespace
}  // namespace gemma4::cuda
