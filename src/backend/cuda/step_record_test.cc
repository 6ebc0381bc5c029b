// What the step recorder takes and what it leaves alone. No GPU is needed: a program that is not on the device while a
// graph is captured runs as the plain kernels it stands for, here marks in a list.
#include <gtest/gtest.h>

#include "backend/cuda/step.h"

namespace gemma4::cuda {
namespace {

class CudaRecorder : public testing::Test {
 protected:
  static StepWorkspace workspace(int world) {
    StepWorkspace w = {};
    w.decode.blocks = 132, w.decode.shared_most = 227 << 10;
    w.peers.world = world;
    w.peers.inbox[0] = reinterpret_cast<uint32_t*>(0x3000);
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

  // The verbs of a sliding layer as run_layer() says them; each returns whether it was taken.
  bool product() { return recorder_.linear(qkv_, h_, matrix(16384, 5376), false, mark(0)); }
  bool heads(int page = 64, int64_t q_heads = 32) {
    KvView kv;
    kv.heads = 16, kv.dim = kv.row = 256, kv.table_page = page;
    kv.v = reinterpret_cast<void*>(0x1000), kv.table = reinterpret_cast<const int32_t*>(0x2000);
    kv_ = kv;
    const Tensor q = qkv_.columns(0, q_heads * 256).split(q_heads, 256);
    const Tensor k = qkv_.columns(8192, 4096).split(16, 256), v = qkv_.columns(12288, 4096).split(16, 256);
    const Tensor norm = tensor(DType::kF32, 256);
    return recorder_.heads(query_, q, k, v, {norm, norm, 1e-6f}, tensor(DType::kI32, 1),
                           Rope{tensor(DType::kF32, 128), 256}, kv_, rows_, mark(1));
  }
  bool attend(const Tensor& query) { return recorder_.attend(o_, query, kv_, rows_, mark(2)); }
  bool back() { return recorder_.linear(y_, o_, matrix(5376, 8192), false, mark(3)); }
  bool norms() {
    return recorder_.norm(h_, x_, y_, tensor(DType::kF32, 5376), 1, tensor(DType::kF32, 5376), 1e-6f, mark(4));
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
  KvView kv_;
  const Tensor h_ = tensor(DType::kBF16, 5376), qkv_ = tensor(DType::kF32, 16384), query_ = tensor(DType::kF16, 8192),
               o_ = tensor(DType::kBF16, 8192), y_ = tensor(DType::kF32, 5376), x_ = tensor(DType::kF32, 5376),
               act_ = tensor(DType::kBF16, 21504), rows_ = tensor(DType::kI32, 4);
};

TEST_F(CudaRecorder, TakesALayerAndKeepsItsOrder) {
  recorder_.begin();
  EXPECT_TRUE(product() && heads() && attend(query_) && back() && norms() && mlp() && down() && norms());
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
  EXPECT_TRUE(product() && heads());
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
  EXPECT_FALSE(heads()) << "of no product";
  EXPECT_TRUE(product());
  EXPECT_FALSE(linear(y_, o_, matrix(5376, 8192, false, Layout::kQ4_0), false)) << "another layout";
  EXPECT_FALSE(heads(24)) << "tiles of 16 keys would cross pages";
  EXPECT_TRUE(heads());
  EXPECT_FALSE(back()) << "heads wait for their attention";
  EXPECT_FALSE(attend(tensor(DType::kF16, 8192))) << "other queries";
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

}  // namespace
}  // namespace gemma4::cuda
