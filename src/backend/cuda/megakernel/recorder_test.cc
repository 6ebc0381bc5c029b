// What the step recorder takes and what it leaves alone. No GPU is needed: a program that is not on the device while a
// graph is captured runs as the plain kernels it stands for, here marks in a list.
#include <gtest/gtest.h>

#include <set>

#include "backend/cuda/megakernel/recorder.h"

namespace gemma4::cuda {
namespace {

class CudaRecorder : public testing::Test {
 protected:
  static StepWorkspace workspace(int world) {
    StepWorkspace w = {};
    w.decode.blocks = 132, w.decode.shared_most = 227 << 10;
    w.peers.world = world;
    w.peers.receive[0] = reinterpret_cast<uint32_t*>(0x3000);
    w.words = reinterpret_cast<uint32_t*>(0x4000);
    return w;
  }

  // Addresses that nobody reads.
  Tensor tensor(DType type, int64_t cols, int64_t rows = 1) {
    return Tensor(reinterpret_cast<void*>(next_ += 1 << 20), type, {rows, cols});
  }
  DeviceMatrix matrix(int64_t rows, int64_t cols, bool paired = false, Layout layout = Layout::kInt4G32) {
    DeviceMatrix w;
    w.layout = layout, w.rows = rows, w.cols = cols, w.paired = paired;
    w.data = reinterpret_cast<void*>(next_ += 1 << 20);
    return w;
  }
  StepRecorder::Plain mark(int what) {
    return [this, what](cudaStream_t) { ran_.push_back(what); };
  }

  // The ops of a sliding layer as run_layer() says them; each returns whether it was taken.
  bool product() { return recorder_.linear(qkv_, h_, matrix(16384, 5376), false, mark(0)); }
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
  bool back() { return recorder_.linear(y_, o_, matrix(5376, 8192), false, mark(3)); }
  bool norms() {
    return recorder_.add_rms_norm(h_, x_, y_, tensor(DType::kF32, 5376), 1, tensor(DType::kF32, 5376), 1e-6f, mark(4));
  }
  bool mlp() { return recorder_.linear(act_, h_, matrix(43008, 5376, true), true, mark(5)); }
  bool down() { return recorder_.linear(y_, act_, matrix(5376, 21504), false, mark(6)); }

  std::vector<int> flushed() {
    ran_.clear();
    recorder_.flush(true, nullptr);
    return ran_;
  }

  uintptr_t next_ = 1 << 20;
  std::vector<int> ran_;
  StepRecorder recorder_{workspace(1)};
  KvCacheView kv_;
  const Tensor h_ = tensor(DType::kBF16, 5376), qkv_ = tensor(DType::kF32, 16384), query_ = tensor(DType::kF16, 8192),
               o_ = tensor(DType::kBF16, 8192), y_ = tensor(DType::kF32, 5376), x_ = tensor(DType::kF32, 5376),
               act_ = tensor(DType::kBF16, 21504), rows_ = tensor(DType::kI32, 4);
};

TEST_F(CudaRecorder, TakesALayerAndKeepsItsOrder) {
  recorder_.begin();
  EXPECT_TRUE(product() && qk_norm_rope_cache() && attention(query_) && back() && norms() && mlp() && down() &&
              norms());
  EXPECT_TRUE(product());  // of the next layer, from the norm
  EXPECT_EQ(flushed(), (std::vector{0, 1, 2, 3, 4, 5, 6, 4, 0}));
  EXPECT_EQ(flushed(), std::vector<int>()) << "twice";
}

TEST_F(CudaRecorder, TakesNothingUnlessAStepIsOpen) {
  EXPECT_FALSE(product() || norms() || mlp());
  recorder_.begin();
  EXPECT_TRUE(product());
  recorder_.end(true, nullptr);
  EXPECT_EQ(ran_, std::vector{0});
  EXPECT_FALSE(product());
}

TEST_F(CudaRecorder, AFailedStepLeavesNothing) {
  recorder_.begin();
  EXPECT_TRUE(product() && qk_norm_rope_cache());
  recorder_.drop();
  EXPECT_FALSE(recorder_.open());
  EXPECT_EQ(flushed(), std::vector<int>());
  recorder_.begin();
  EXPECT_TRUE(product()) << "the heads of the step before still wait";
}

TEST_F(CudaRecorder, LeavesAloneWhatTheKernelDoesNotKnow) {
  recorder_.begin();
  const auto linear = [&](const Tensor& out, const Tensor& x, const DeviceMatrix& w, bool geglu) {
    return recorder_.linear(out, x, w, geglu, mark(9));
  };
  EXPECT_FALSE(linear(tensor(DType::kF32, 16384, 2), tensor(DType::kBF16, 5376, 2), matrix(16384, 5376), false));
  EXPECT_FALSE(linear(qkv_, h_, matrix(16384, 5376, false, Layout::kInt8G32), false));
  EXPECT_FALSE(linear(qkv_, h_, matrix(16384, 5376, true), false)) << "interleaved rows, no GeGLU";
  EXPECT_FALSE(linear(y_, tensor(DType::kBF16, 64 * 900), matrix(5376, 64 * 900), false)) << "more columns than fit";
  EXPECT_FALSE(qk_norm_rope_cache()) << "of no product";
  EXPECT_TRUE(product());
  EXPECT_FALSE(linear(y_, o_, matrix(5376, 8192, false, Layout::kQ4_0), false)) << "another layout";
  EXPECT_FALSE(qk_norm_rope_cache(24)) << "tiles of 16 keys would cross pages";
  EXPECT_TRUE(qk_norm_rope_cache());
  EXPECT_FALSE(back()) << "heads wait for their attention";
  EXPECT_FALSE(attention(tensor(DType::kF16, 8192))) << "other queries";
  EXPECT_EQ(flushed(), (std::vector{0, 1}));
}

TEST_F(CudaRecorder, AProductAfterNormsTakesWhatTheyMade) {
  recorder_.begin();
  EXPECT_TRUE(back() && norms());
  EXPECT_FALSE(recorder_.linear(act_, tensor(DType::kBF16, 5376), matrix(43008, 5376, true), true, mark(5)));
  EXPECT_TRUE(mlp());
}

TEST_F(CudaRecorder, SumsOverRanksFollowTheirProduct) {
  recorder_.begin();
  EXPECT_TRUE(back());
  EXPECT_FALSE(recorder_.all_reduce(y_, mark(7))) << "one rank";
  StepRecorder ranks(workspace(2));
  ranks.begin();
  EXPECT_FALSE(ranks.all_reduce(y_, mark(7))) << "of nothing";
  EXPECT_TRUE(ranks.linear(y_, o_, matrix(5376, 8192), false, mark(3)));
  EXPECT_FALSE(ranks.all_reduce(o_, mark(7))) << "of another tensor";
  EXPECT_TRUE(ranks.all_reduce(y_, mark(7)));
  EXPECT_FALSE(ranks.linear(act_, y_, matrix(43008, 5376, true), true, mark(5))) << "only norms add parts up";
  ran_.clear();
  ranks.flush(true, nullptr);
  EXPECT_EQ(ran_, (std::vector{3, 7}));
  const Tensor other = tensor(DType::kF32, 2560);
  EXPECT_TRUE(ranks.linear(other, h_, matrix(2560, 5376), false, mark(3)));
  EXPECT_FALSE(ranks.all_reduce(other, mark(7))) << "an inbox would take what an earlier sum left for its values";
}

// Two layers: from product to attention to product, and from GeGLU to product, values pass as words; the second time
// in the same place, one turn later. Norms wait for sums.
TEST_F(CudaRecorder, ValuesPassAsWords) {
  recorder_.begin();
  for (int layer = 0; layer < 2; ++layer) {
    ASSERT_TRUE(product() && qk_norm_rope_cache() && attention(query_) && back() && norms() && mlp() && down() &&
                norms());
  }
  const auto& ops = recorder_.operations();
  ASSERT_EQ(ops.size(), 14u);
  const auto same = [](const StepWords& a, const StepWords& b, int turn) {
    return a.at && a.at == b.at && a.region == b.region && a.turn == turn && b.turn == turn;
  };
  for (int layer = 0; layer < 2; ++layer) {
    const StepOp* op = &ops[static_cast<size_t>(7 * layer)];
    EXPECT_TRUE(same(op[0].linear.to, op[1].attend.from, layer + 1));
    EXPECT_EQ(op[1].attend.q, op[0].linear.to.at);
    EXPECT_EQ(op[1].attend.v, op[0].linear.to.at + 12288);
    EXPECT_TRUE(same(op[1].attend.to, op[2].linear.from, layer + 1));
    EXPECT_TRUE(same(op[4].linear.to, op[5].linear.from, layer + 1));
    const std::set<int> regions = {0, op[0].linear.to.region, op[1].attend.to.region, op[4].linear.to.region};
    EXPECT_EQ(regions.size(), 4u) << "0 is of sums";
    EXPECT_EQ(op[2].linear.sum, 2 * layer + 1);
    EXPECT_EQ(op[3].norm.sum, 2 * layer + 1);
    EXPECT_EQ(op[5].linear.sum, 2 * layer + 2);
    EXPECT_EQ(op[6].norm.sum, 2 * layer + 2);
    EXPECT_FALSE(op[0].linear.second || op[4].linear.second) << "parts of two products are kept apart";
    EXPECT_TRUE(op[2].linear.second && op[5].linear.second);
  }
}

// A block may still have to read what the second use would write over.
TEST_F(CudaRecorder, WordsAreNotWrittenAgainBeforeAllBlocksMet) {
  recorder_.begin();
  ASSERT_TRUE(product() && qk_norm_rope_cache(64, 16) && attention(query_));
  ASSERT_TRUE(recorder_.linear(qkv_, o_, matrix(16384, 4096), false, mark(3)) && qk_norm_rope_cache(64, 16));
  EXPECT_NE(recorder_.operations()[1].attend.from.at, nullptr);
  EXPECT_EQ(recorder_.operations()[3].attend.from.at, nullptr) << "at a barrier";
}

TEST_F(CudaRecorder, ThirdProductWaitsForAllBlocks) {  // there is room for the parts of two
  recorder_.begin();
  const Tensor a = tensor(DType::kBF16, 5376), b = tensor(DType::kBF16, 2688);
  ASSERT_TRUE(recorder_.linear(a, h_, matrix(10752, 5376, true), true, mark(0)) &&
              recorder_.linear(b, a, matrix(5376, 5376, true), true, mark(1)) &&
              recorder_.linear(a, b, matrix(10752, 2688, true), true, mark(2)) &&
              recorder_.linear(b, a, matrix(5376, 5376, true), true, mark(3)));
  const auto& ops = recorder_.operations();
  EXPECT_NE(ops[1].linear.from.at, nullptr);
  EXPECT_EQ(ops[2].linear.from.at, nullptr) << "at a barrier";
  EXPECT_NE(ops[3].linear.from.at, nullptr) << "after it";
}

TEST_F(CudaRecorder, NormsOfAFewBlocksProductsWaitForAllBlocks) {
  recorder_.begin();
  const Tensor y = tensor(DType::kF32, 128), x = tensor(DType::kF32, 128), h = tensor(DType::kBF16, 128);
  ASSERT_TRUE(recorder_.linear(y, tensor(DType::kBF16, 3200), matrix(128, 3200), false, mark(0)));  // 50 units
  ASSERT_TRUE(recorder_.add_rms_norm(h, x, y, tensor(DType::kF32, 128), 1, tensor(DType::kF32, 128), 1e-6f, mark(1)));
  EXPECT_EQ(recorder_.operations()[0].linear.sum, 0);
  EXPECT_EQ(recorder_.operations()[1].norm.sum, 0);
}

// Every unit falls to one block, shares of units that count differ by one at most, the input of every share fits, and a
// unit's panel is found without a division.
TEST_F(CudaRecorder, SharesOutEveryProduct) {
  const std::vector<std::pair<int64_t, int64_t>> shapes = {
      {16384, 5376}, {18432, 5376}, {5376, 16384}, {43008, 5376}, {5376, 21504}, {5376, 10752}, {262144, 5376},
      {8192, 5376},  {5376, 4096},  {128, 64},     {200, 64},     {16896, 64},   {16, 6912},    {5376, 5376}};
  for (const auto& [rows, cols] : shapes) {
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(cols));
    recorder_.begin();
    ASSERT_TRUE(
        recorder_.linear(tensor(DType::kF32, rows), tensor(DType::kBF16, cols), matrix(rows, cols), false, mark(0)));
    const StepLinear op = recorder_.operations().back().linear;
    recorder_.drop();
    const int units = op.panels * op.chunks;
    // Panels that several blocks share leave who ends them something to do while parts come.
    EXPECT_EQ(op.spare, units / 132 < op.chunks ? step_spare(units / 132) : 0);
    EXPECT_EQ(op.first_unit(0), 0);
    EXPECT_EQ(op.first_unit(132), units);
    for (int block = 0; block < 132; ++block) {
      const int begin = op.first_unit(block), end = op.first_unit(block + 1);
      const int counted = end - begin - op.spare * (end / op.chunks - begin / op.chunks);
      ASSERT_GE(counted, op.each);
      ASSERT_LE(counted, op.each + (block < op.more ? 1 : 0));
      ASSERT_LE(op.whole ? op.chunks : end - begin, kStepChunks);
      ASSERT_TRUE(op.whole || end - begin <= op.chunks) << "of a part of x each column is held once";
    }
    for (int unit = 0; unit <= units; ++unit) ASSERT_EQ(op.panel_of(unit), unit / op.chunks) << unit;
  }
}

// Past what panel_of() is exact for, a product is left to its own kernel.
TEST_F(CudaRecorder, LeavesProductsThatAreTooLarge) {
  recorder_.begin();
  const int64_t rows = 450000 * 128, cols = 100 * 64;  // 45 million units times 100 chunks: more than 2^32
  EXPECT_FALSE(
      recorder_.linear(tensor(DType::kF32, rows), tensor(DType::kBF16, cols), matrix(rows, cols), false, mark(0)));
}

}  // namespace
}  // namespace gemma4::cuda
