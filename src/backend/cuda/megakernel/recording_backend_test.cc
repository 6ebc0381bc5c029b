// Whether a decode step of the 31B runs in the megakernel as a whole. run_layer() issues the real ops with the real
// shapes and types to RecordingBackend, which offers them to the recorder as in CudaBackend. Only memory and kernels
// are missing: addresses are made up and never read, and kernels only leave their name. So no GPU is needed.
#include "backend/cuda/megakernel/recording_backend.h"

#include <gtest/gtest.h>

#include <set>

#include "model/layer.h"

namespace gemma4 {
namespace {

using cuda::DeviceMatrix;
using cuda::Layout;

class FakeBackend final : public RecordingBackend<FakeBackend> {
 public:
  explicit FakeBackend(int world, bool several_rows = false, int sms = 132) {
    cuda::MegakernelWorkspace w;
    if (several_rows) w.rows.limbs = reinterpret_cast<uint8_t*>(0x3000);
    w.decode.blocks = sms, w.decode.shared_max = 227 << 10;  // H100
    w.channels = reinterpret_cast<uint32_t*>(0x1000);
    w.ranks.receive[0] = reinterpret_cast<uint32_t*>(0x2000);
    w.ranks.world = world;
    make_recorder(w, [this](const cuda::InstructionList& list) { launched_.push_back(list.count); });
  }

  const char* name() const override { return "fake"; }
  DType gemm_input_type(const Matrix& w) const override {
    return cuda::device_matrix(w).layout == Layout::kBF16 ? DType::kF16 : DType::kBF16;
  }
  Tensor alloc(DType type, std::initializer_list<int64_t> shape) override {
    Tensor t(nullptr, type, shape);
    t.data = reinterpret_cast<void*>(next_);
    next_ += static_cast<uintptr_t>(t.bytes() + 255) / 256 * 256;
    return t;
  }
  void release(Tensor) override {}
  Matrix matrix(int64_t rows, int64_t cols, Layout layout, bool paired = false) {
    DeviceMatrix w;
    w.layout = layout, w.rows = rows, w.cols = cols, w.paired = paired;
    w.data = alloc(DType::kU8, {rows, cols}).data;
    Matrix m;
    m.rows = rows, m.cols = cols;
    m.uploaded = std::make_shared<DeviceMatrix>(w);
    return m;
  }
  Matrix upload(std::span<const Matrix>) override { return {}; }
  void write(Tensor, const void*) override {}
  void read(void*, Tensor) override {}
  int64_t memory_used() const override { return 0; }

  void embed(Tensor, const Matrix&, Tensor, float) override { stream(); }
  void rms_norm(Tensor, Tensor, Tensor, float) override { stream(); }
  void softcap(Tensor, float) override { stream(); }
  void add(Tensor, Tensor, float) override { ran("add"); }
  void geglu(Tensor, Tensor) override { ran("geglu"); }
  void rope(Tensor, Tensor, const Rope&) override { ran("rope"); }
  void kv_write(const KvCache&, Tensor, Tensor, const Rows&) override { ran("kv_write"); }
  void convert(Tensor, Tensor) override { ran("convert"); }
  void gather(Tensor, Tensor, Tensor) override { ran("gather"); }
  void scatter(Tensor, Tensor, Tensor) override { ran("scatter"); }
  void pool(Tensor, Tensor, Tensor, float) override { ran("pool"); }
  void affine(Tensor, Tensor, Tensor) override { ran("affine"); }
  void sample(Tensor, Tensor, std::span<const SamplingInput>) override { ran("sample"); }

  // As CudaBackend: directly, captured, then replayed without calling `issue`.
  void replay(uint64_t key, const std::function<void()>& issue) override {
    if (recorded_[key] < 2) {
      capturing_ = ++recorded_[key] == 2;
      record_step(key, issue);
      capturing_ = false;
    }
    count_step(key);
  }

  std::set<std::string> own_kernels_;  // that ran
  std::vector<int> launched_;          // instructions of each launch of the megakernel

 private:
  void ran(const char* op) { stream(), own_kernels_.insert(op); }
  friend RecordingBackend<FakeBackend>;
  void run_linear(Tensor, Tensor, const DeviceMatrix& w, cudaStream_t) {
    if (w.layout != Layout::kBF16) own_kernels_.insert("linear");  // the LM head is not meant to run in the megakernel
  }
  void run_linear_geglu(Tensor, Tensor, const DeviceMatrix&, Tensor, cudaStream_t) {
    own_kernels_.insert("linear_geglu");
  }
  void run_qk_norm_rope_cache(Tensor, Tensor, Tensor, Tensor, const QkNorms&, Tensor, const Rope&,
                              const cuda::KvCacheView&, Tensor, cudaStream_t) {
    own_kernels_.insert("qk_norm_rope_cache");
  }
  void run_attention(Tensor, Tensor, const cuda::KvCacheView&, const Rows&, cudaStream_t) {
    own_kernels_.insert("attention");
  }
  void run_add_rms_norm(Tensor, Tensor, Tensor, Tensor, float, Tensor, float, cudaStream_t) {
    own_kernels_.insert("add_rms_norm");
  }
  void run_all_reduce(Tensor, cudaStream_t) { own_kernels_.insert("all_reduce"); }
  cudaStream_t device_stream() { return nullptr; }
  bool capturing() const { return capturing_; }

  uintptr_t next_ = 1 << 20;
  std::map<uint64_t, int> recorded_;
  bool capturing_ = false;
};

// The text decoder of a rank, by default of the 31B on one GPU.
struct Decoder {
  int64_t rows = 1, ranks = 1;
  int64_t layers = 60, hidden = 5376, inner = 21504, heads = 32;
  int64_t kv_heads[2] = {16, 4}, head_dim[2] = {256, 512};  // of sliding and full layers
  Layout weights = Layout::kInt4G32, down = Layout::kInt4G32;
  DType norms = DType::kF32;
  int page = 64, rotated_pairs = 64;
};

class CudaRecordingBackend : public testing::Test {
 protected:
  static std::vector<LayerWeights> layer_weights(const Decoder& d, FakeBackend& be) {
    const int64_t inner = d.inner / d.ranks, heads = d.heads / d.ranks;
    const auto vector = [&](int64_t size) { return be.alloc(d.norms, {size}); };
    std::vector<LayerWeights> layers(static_cast<size_t>(d.layers));
    for (size_t i = 0; i < layers.size(); ++i) {
      LayerWeights& w = layers[i];
      const int kind = kind_of(i);
      const int64_t q = heads * d.head_dim[kind], kv = d.kv_heads[kind] / d.ranks * d.head_dim[kind];
      w.partial_sums = d.ranks > 1;
      w.qkv.rows = q + kv * (2 - kind);
      w.qkv.slices = {{be.matrix(w.qkv.rows, d.hidden, d.weights), 0}};
      w.o = be.matrix(d.hidden, q, d.weights);
      w.gate_up = {{{be.matrix(2 * inner, d.hidden, d.weights, true), 0}}, 2 * inner};
      w.down = be.matrix(d.hidden, inner, d.down);
      w.input_norm = vector(d.hidden), w.post_attention_norm = vector(d.hidden);
      w.pre_feedforward_norm = vector(d.hidden), w.post_feedforward_norm = vector(d.hidden);
      w.q_norm = vector(d.head_dim[kind]), w.k_norm = vector(d.head_dim[kind]);
    }
    return layers;
  }

  // Runs `steps` steps with one key.
  static Backend::Stats run(const Decoder& d, FakeBackend& be, int steps = 1) {
    const int64_t inner = d.inner / d.ranks, heads = d.heads / d.ranks;
    int64_t q_max = 0, kv_max = 0, qkv_max = 0;
    LayerShape shapes[2];
    Rope ropes[2];
    KvCache caches[2];
    for (int kind = 0; kind < 2; ++kind) {
      shapes[kind] = {heads, d.kv_heads[kind] / d.ranks, d.head_dim[kind], kind == 0};
      const int64_t q = heads * d.head_dim[kind], kv = shapes[kind].kv_heads * d.head_dim[kind];
      q_max = std::max(q_max, q), kv_max = std::max(kv_max, kv), qkv_max = std::max(qkv_max, q + kv * (2 - kind));
      ropes[kind] = {be.alloc(DType::kF32, {1, d.head_dim[kind] / 2}), static_cast<int>(d.head_dim[kind])};
      caches[kind] = be.kv_alloc({int64_t{32} * d.page, d.page, static_cast<int>(shapes[kind].kv_heads),
                                  static_cast<int>(d.head_dim[kind]), kind ? d.rotated_pairs : 0});
      caches[kind].pages = be.alloc(DType::kI32, {1, 32});
      caches[kind].k_norm = be.alloc(DType::kF32, {d.head_dim[kind]});
    }
    const std::vector<LayerWeights> layers = layer_weights(d, be);
    Activations a;  // as TextModel allocates them
    const DType type = be.activation_type(), output = be.gemm_output_type();
    a.x = be.alloc(be.residual_type(), {d.rows, d.hidden}), a.h = be.alloc(type, {d.rows, d.hidden});
    a.y = be.alloc(d.ranks > 1 ? be.reduce_type(d.rows) : output, {d.rows, d.hidden});
    a.qkv = be.alloc(output, {d.rows, qkv_max}), a.values = be.alloc(output, {d.rows, kv_max});
    a.query = be.alloc(be.attention_type(), {d.rows, q_max}), a.o = be.alloc(type, {d.rows, q_max});
    a.gate_up = be.alloc(type, {d.rows, 2 * inner}), a.act = be.alloc(type, {d.rows, inner});
    const Tensor pos = be.alloc(DType::kI32, {d.rows, 1}), ids = be.alloc(DType::kI32, {d.rows, 1});
    const Tensor out = be.alloc(type, {1, d.hidden}), logits = be.alloc(DType::kF32, {1, 1024});
    const Matrix head = be.matrix(1024, d.hidden, Layout::kBF16);
    const Rows rows[2] = {{be.alloc(DType::kI32, {d.rows, 4}), {}}, {be.alloc(DType::kI32, {d.rows, 4}), {}}};

    const auto issue = [&] {
      be.embed(a.x, head, ids, 1);
      be.rms_norm(attention_input(be, a, layers[0]), a.x, layers[0].input_norm, 1e-6f);
      for (size_t i = 0; i < layers.size(); ++i) {
        const int kind = kind_of(i);
        run_layer(be, a, layers[i], {shapes[kind], pos, &ropes[kind], &caches[kind], &rows[kind], 1e-6f},
                  i + 1 < layers.size() ? &layers[i + 1] : nullptr);
      }
      be.rms_norm(out, a.x.slice(0, 1), layers[0].input_norm, 1e-6f);
      be.linear(logits, out, head);
      be.softcap(logits, 30);
    };
    for (int i = 0; i < steps; ++i) be.replay(1, issue);
    return be.stats();
  }
  static int kind_of(size_t layer) { return layer % 6 == 5; }  // five sliding layers, then a full one

  static Backend::Stats run(const Decoder& d) {
    FakeBackend be(static_cast<int>(d.ranks));
    return run(d, be);
  }
};

TEST_F(CudaRecordingBackend, DecodeStepOf31BRunsInTheMegakernel) {
  FakeBackend be(1);
  const Backend::Stats stats = run({}, be);
  EXPECT_EQ(stats.ops, 420) << "seven ops in each of 60 layers";
  EXPECT_EQ(stats.megakernel_ops, stats.ops);
  EXPECT_EQ(be.own_kernels_, std::set<std::string>()) << "ops that fell off the fast path";
  EXPECT_EQ(be.launched_, std::vector{420}) << "one launch";
}

TEST_F(CudaRecordingBackend, DecodeStepOf31BOverTwoGpusRunsInTheMegakernel) {
  Decoder d;
  d.ranks = 2;
  FakeBackend be(2);
  const Backend::Stats stats = run(d, be);
  EXPECT_EQ(stats.ops, 540) << "with two all-reduces in each layer";
  EXPECT_EQ(stats.megakernel_ops, stats.ops);
  EXPECT_EQ(be.own_kernels_, std::set<std::string>()) << "ops that fell off the fast path";
  EXPECT_EQ(be.launched_, std::vector{420}) << "an all-reduce is part of two instructions";
}

TEST_F(CudaRecordingBackend, StepsOfSeveralRowsRunInTheMegakernel) {
  for (const int rows : {2, 5, 8}) {
    Decoder d;
    d.rows = rows;
    FakeBackend be(1, true);
    const Backend::Stats stats = run(d, be);
    EXPECT_EQ(stats.ops, 420);
    EXPECT_EQ(stats.megakernel_ops, 420);
    EXPECT_EQ(be.own_kernels_, std::set<std::string>()) << "ops that fell off the fast path";
    EXPECT_EQ(be.launched_, std::vector{420}) << "one launch";
  }
  Decoder d;
  d.rows = 9;
  FakeBackend be(1, true);
  EXPECT_EQ(run(d, be).megakernel_ops, 0);
  d = {.rows = 4, .layers = 12, .hidden = 1280, .inner = 2560, .heads = 8, .kv_heads = {4, 2}};
  FakeBackend small(1, true);
  EXPECT_EQ(run(d, small).megakernel_ops, 12 * 7);
  EXPECT_EQ(small.own_kernels_, std::set<std::string>());
  // Row r's norms are computed by CTA r: without one the step would never end.
  d = {.rows = 4, .layers = 12, .hidden = 640, .inner = 1280, .heads = 2, .kv_heads = {2, 1}};
  for (const int sms : {3, 4}) {
    FakeBackend few(1, true, sms);
    EXPECT_EQ(run(d, few).megakernel_ops, sms < 4 ? 0 : 12 * 7) << sms;
  }
  setenv("GEMMA4_CUDA_STEP", "one", 1);
  FakeBackend one(1, true), several(1, true);
  unsetenv("GEMMA4_CUDA_STEP");
  d = {};
  EXPECT_EQ(run(d, one).megakernel_ops, 420);
  d.rows = 2;
  EXPECT_EQ(run(d, several).megakernel_ops, 0);
}

TEST_F(CudaRecordingBackend, CountsReplayedSteps) {
  FakeBackend be(1);
  const Backend::Stats stats = run({}, be, 5);
  EXPECT_EQ(stats.steps, 5);
  EXPECT_EQ(stats.megakernel_steps, 5);
  EXPECT_EQ(stats.megakernel_ops, 420);
  EXPECT_EQ(be.launched_.size(), 2u) << "a replay issues nothing";
}

TEST_F(CudaRecordingBackend, DoesNotCountStepsOfRowsThatItDoesNotTake) {
  Decoder d;
  d.rows = 2;
  FakeBackend be(1);
  const Backend::Stats stats = run(d, be);
  EXPECT_EQ(stats.steps, 0);
  EXPECT_EQ(stats.ops, 0);
  EXPECT_EQ(be.launched_, std::vector<int>());
}

// What must not pass unnoticed: each change takes ops off the fast path.
TEST_F(CudaRecordingBackend, NoticesOpsThatTheMegakernelDoesNotTake) {
  const auto expect_fewer = [](const char* what, const Decoder& d) {
    SCOPED_TRACE(what);
    FakeBackend be(1);
    const Backend::Stats stats = run(d, be, 3);
    EXPECT_EQ(stats.steps, 3);
    EXPECT_EQ(stats.megakernel_steps, 0);
    EXPECT_EQ(stats.ops, 420);
    EXPECT_LT(stats.megakernel_ops, 420);
    EXPECT_NE(be.own_kernels_, std::set<std::string>());
  };
  Decoder d;
  d.head_dim[0] = 128;
  expect_fewer("head size of sliding layers", d);
  d = {}, d.down = Layout::kInt8G32;
  expect_fewer("int8 down projections", d);
  d = {}, d.weights = d.down = Layout::kInt8G32;
  expect_fewer("int8 weights", d);
  d = {}, d.norms = DType::kBF16;
  expect_fewer("bf16 norm weights", d);
  d = {}, d.page = 24;
  expect_fewer("pages that cut tiles of keys", d);
  d = {}, d.rotated_pairs = 32;
  expect_fewer("rotated pairs of full layers", d);
  d = {}, d.hidden = 5440, d.heads = 32;
  expect_fewer("hidden size beyond the residual stream", d);
}

TEST_F(CudaRecordingBackend, CanBeSwitchedOff) {
  setenv("GEMMA4_CUDA_STEP", "off", 1);
  const Backend::Stats stats = run(Decoder());
  unsetenv("GEMMA4_CUDA_STEP");
  EXPECT_EQ(stats.ops, 420);
  EXPECT_EQ(stats.megakernel_ops, 0);
}

}  // namespace
}  // namespace gemma4
