// Attention, the KV cache and qk_norm_rope_cache() of the CUDA backend against ref: every kernel, 31B's shapes, rings
// and pages, image blocks, several sequences, captured graphs, and the compressed cache of full layers. Whatever
// attention() chooses on this device, each case also runs through flash_prefill_mma() if that takes its shape.
#include <algorithm>
#include <array>
#include <numeric>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/backend_pair_testing.h"
#include "backend/cuda/megakernel/recording_backend.h"
#include "backend/cuda/runtime/error.h"

namespace gemma4 {
namespace {

constexpr DType kBf16 = DType::kBF16, kF16 = DType::kF16, kF32 = DType::kF32;
// The result is rounded to bf16. The rounding of softmax weights (and of q * k_norm with a compressed cache) to float16
// adds an eighth of that.
constexpr double kTolerance = kRounded;

struct Layout {
  int heads, kv_heads, dim;
  int page, pages;  // of each sequence; 0: a flat cache without a table
  int rotated = 0;  // > 0: keys are rope(V * k_norm), compressed on the GPU
  int seqs = 1;
  int slots = 1024;  // of a flat cache
};

class CudaAttention : public CudaTest {
 protected:
  struct Caches {
    KvCache ref, gpu;
    Layout layout;
    Twin k_norm;
    std::vector<float> inv_freq;
  };

  Caches make(const Layout& l) {
    Caches c;
    c.layout = l;
    const int64_t slots = l.page ? int64_t{l.seqs} * l.pages * l.page : l.slots;
    const KvCacheConfig plain = {slots, std::max(l.page, 1), l.kv_heads, l.dim, 0};
    KvCacheConfig mine = plain;
    mine.rotated_pairs = l.rotated;
    c.ref = ref().kv_alloc(plain);
    c.gpu = gpu().kv_alloc(mine);
    c.k_norm = twin(kF32, {l.dim}, std::vector<float>(static_cast<size_t>(l.dim), 1.0f));
    if (l.rotated) {
      c.k_norm = random(kF32, {l.dim}, 1);
      c.gpu.k_norm = c.k_norm.gpu;
      c.gpu.rotated_pairs = l.rotated;
    }
    if (l.page) {
      std::vector<int32_t> table(static_cast<size_t>(l.seqs * l.pages));
      std::iota(table.begin(), table.end(), 0);
      std::shuffle(table.begin(), table.end(), random_);
      const Twin pages = ints({l.seqs, l.pages}, table);
      c.ref.pages = pages.ref, c.gpu.pages = pages.gpu;
    }
    return c;
  }

  static Rows view(Tensor device, const std::vector<Row>& rows) { return {device, {rows.data(), rows.size()}}; }
  Twin device_rows(const std::vector<Row>& rows) {
    std::vector<int32_t> flat;
    for (const Row& r : rows) flat.insert(flat.end(), {r.seq, r.pos, r.first, r.last});
    return ints({static_cast<int64_t>(rows.size()), 4}, flat);
  }

  // Writes positions 0 .. count-1 of sequence `seq`, in pieces, with random keys and values.
  void fill(const Caches& c, int seq, int count) {
    const Layout& l = c.layout;
    for (int begin = 0; begin < count; begin += 61) {
      std::vector<Row> rows;
      for (int p = begin; p < std::min(begin + 61, count); ++p) rows.push_back({seq, p, 0, p});
      const auto n = static_cast<int64_t>(rows.size());
      const DType type = l.rotated || begin % 2 == 0 ? kF32 : kBf16;  // linear layers give either type
      const Twin v = random(type, {n, l.kv_heads, l.dim}), at = device_rows(rows);
      Twin k = random(type, {n, l.kv_heads, l.dim}, 0.15f);
      if (l.rotated) k = related_keys(c, v, rows);
      ref().kv_write(c.ref, k.ref, v.ref, view(at.ref, rows));
      gpu().kv_write(c.gpu, k.gpu, v.gpu, view(at.gpu, rows));
    }
  }

  // rope(v * k_norm), rounded to float16, as a full layer makes it.
  Twin related_keys(const Caches& c, const Twin& v, const std::vector<Row>& rows) {
    const Layout& l = c.layout;
    std::vector<float> values = get(ref(), v.ref);
    const std::vector<float> weight = get(ref(), c.k_norm.ref);
    for (size_t i = 0; i < values.size(); ++i) values[i] *= weight[i % static_cast<size_t>(l.dim)];
    const Tensor keys = put(ref(), kF32, {v.ref.shape[0], l.kv_heads, l.dim}, values);
    std::vector<float> freq(static_cast<size_t>(l.dim / 2));
    for (int i = 0; i < l.rotated; ++i)
      freq[static_cast<size_t>(i)] = static_cast<float>(std::pow(1e6, -2.0 * i / l.dim));
    std::vector<int32_t> at;
    for (const Row& r : rows) at.push_back(r.pos);
    ref().rope(keys, ints({static_cast<int64_t>(rows.size()), 1}, at).ref,
               Rope{put(ref(), kF32, {l.dim / 2}, freq), l.dim});
    values = get(ref(), keys);
    for (float& value : values) value = round_to_f16(value);
    return twin(kF32, {v.ref.shape[0], l.kv_heads, l.dim}, values);
  }

  double compare(const Caches& c, const std::vector<Row>& rows, bool captured = false) {
    const Layout& l = c.layout;
    const auto n = static_cast<int64_t>(rows.size());
    // As in the model: q is a slice of a wider buffer.
    const float spread = l.rotated ? 0.05f : 0.3f;
    const Twin wide = random(kF16, {n, (l.heads + 2 * l.kv_heads) * l.dim}, spread), at = device_rows(rows);
    const auto q = [&](Tensor t) { return t.columns(0, l.heads * l.dim).split(l.heads, l.dim); };
    const Twin out = poisoned(kBf16, {n, l.heads, l.dim});
    ref().attention(out.ref, q(wide.ref), c.ref, view(at.ref, rows));
    if (!captured) {
      gpu().attention(out.gpu, q(wide.gpu), c.gpu, view(at.gpu, rows));
      const double chosen = distance(out);
      return worse(chosen, mma_distance(out, q(wide.gpu), c, at));
    }
    for (int i = 0; i < 3; ++i) {  // it runs, then it is captured, then replayed
      gpu().replay(key_, [&] { gpu().attention(out.gpu, q(wide.gpu), c.gpu, view(at.gpu, rows)); });
    }
    ++key_;
    return distance(out);
  }

  static double worse(double a, double b) { return a <= b || std::isnan(b) ? b : a; }

  // The call of flash_prefill_mma(), the kernel of devices without wgmma.
  static cuda::AttentionCall call_of(Tensor out, Tensor q, Tensor rows) {
    return {out.data,
            q.data,
            static_cast<const int32_t*>(rows.data),
            out.stride,
            q.stride,
            static_cast<int>(q.rows()),
            static_cast<int>(q.shape[1])};
  }

  // Runs flash_prefill_mma() on a stream of its own; false if it does not take this shape.
  bool run_mma(Tensor out, Tensor q, const Caches& c, Tensor rows) {
    const cuda::KvCacheView kv = cuda::kv_cache_view(c.gpu);
    const cuda::AttentionCall call = call_of(out, q, rows);
    if (!cuda::flash_prefill_mma_fits(call, kv)) return false;
    gpu().write(out, std::vector<uint16_t>(static_cast<size_t>(out.size()), 0x7fc0).data());  // NaN
    gpu().sync();
    cudaStream_t stream = nullptr;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    cuda::flash_prefill_mma(stream, call, kv);
    CUDA_CHECK(cudaStreamSynchronize(stream));
    CUDA_CHECK(cudaStreamDestroy(stream));
    return true;
  }

  // The distance of flash_prefill_mma()'s result from out.ref; 0 if it does not take this shape.
  double mma_distance(const Twin& out, Tensor q, const Caches& c, const Twin& rows) {
    return run_mma(out.gpu, q, c, rows.gpu) ? distance(out) : 0;
  }

  // The same for many rows of many keys: ref computes some rows only, but all must be written. `spread` is that of the
  // queries; a large one lets a few keys dominate.
  double compare_samples(const Caches& c, const std::vector<Row>& rows, float spread) {
    const Layout& l = c.layout;
    const auto n = static_cast<int64_t>(rows.size());
    const Twin q = random(kF16, {n, l.heads, l.dim}, spread), at = device_rows(rows),
               out = poisoned(kBf16, {n, l.heads, l.dim});
    const Tensor mma = gpu().alloc(kBf16, {n, l.heads, l.dim});
    gpu().attention(out.gpu, q.gpu, c.gpu, view(at.gpu, rows));
    std::vector<Tensor> results = {out.gpu};
    if (run_mma(mma, q.gpu, c, at.gpu)) results.push_back(mma);
    double worst = 0;
    for (const Tensor& result : results) {
      for (const float value : get(gpu(), result)) {
        if (!std::isfinite(value)) return NAN;
      }
    }
    const int64_t count = std::min<int64_t>(n, 5);
    for (const int64_t begin : {int64_t{0}, n / 3, n / 2, n - count}) {
      if (begin + count > n) continue;
      const std::vector<Row> some(rows.begin() + begin, rows.begin() + begin + count);
      ref().attention(out.ref.slice(begin, count), q.ref.slice(begin, count), c.ref,
                      view(at.ref.slice(begin, count), some));
      for (const Tensor& result : results) {
        worst = worse(worst, distance({out.ref.slice(begin, count), result.slice(begin, count)}));
      }
    }
    return worst;
  }

  // Rows begin .. end-1, each of which sees all of them.
  static std::vector<Row> image(int seq, int begin, int end) {
    std::vector<Row> rows;
    for (int p = begin; p < end; ++p) rows.push_back({seq, p, begin, end - 1});
    return rows;
  }

  static std::vector<Row> causal(int seq, int begin, int end, int window) {
    std::vector<Row> rows;
    for (int p = begin; p < end; ++p) rows.push_back({seq, p, std::max(0, p - window + 1), p});
    return rows;
  }

  static inline uint64_t key_ = 1000;  // the backend outlives a test, so no two tests may share a key
};

constexpr Layout kSliding = {32, 16, 256, 64, 20};
constexpr Layout kFull = {32, 4, 512, 64, 20, 64};
constexpr Layout kFullPlain = {32, 4, 512, 64, 20};
constexpr int kAll = 1 << 20;

TEST_F(CudaAttention, DecodeSliding) {
  const Caches c = make(kSliding);
  fill(c, 0, 1200);
  for (const int pos : {0, 5, 63, 64, 700, 1023, 1024, 1199}) {
    EXPECT_LT(compare(c, causal(0, pos, pos + 1, 1024)), kTolerance) << pos;
    EXPECT_LT(compare(c, causal(0, pos, pos + 1, 1024), true), kTolerance) << pos;
  }
  EXPECT_LT(compare(c, causal(0, 1190, 1198, 1024)), kTolerance);
}

TEST_F(CudaAttention, DecodeFull) {
  for (const Layout& layout : {kFull, kFullPlain}) {
    const Caches c = make(layout);
    fill(c, 0, 1200);
    for (const int pos : {0, 31, 64, 1199}) {
      EXPECT_LT(compare(c, causal(0, pos, pos + 1, kAll)), kTolerance) << pos << " " << layout.rotated;
      EXPECT_LT(compare(c, causal(0, pos, pos + 1, kAll), true), kTolerance) << pos;
    }
    EXPECT_LT(compare(c, causal(0, 1100, 1105, kAll)), kTolerance);
  }
}

TEST_F(CudaAttention, PrefillSlidingWindow) {
  const Caches c = make(kSliding);
  fill(c, 0, 1200);
  EXPECT_LT(compare(c, causal(0, 0, 130, 1024)), kTolerance);
  EXPECT_LT(compare(c, causal(0, 1070, 1197, 1024)), kTolerance);
  EXPECT_LT(compare(c, causal(0, 300, 460, 24)), kTolerance);
}

TEST_F(CudaAttention, PrefillImageBlock) {
  const Caches c = make(kSliding);
  fill(c, 0, 400);
  std::vector<Row> rows = causal(0, 0, 400, 1024);
  for (int p = 37; p < 303; ++p) rows[static_cast<size_t>(p)].last = 302;
  rows = {rows.begin() + 20, rows.begin() + 330};
  EXPECT_LT(compare(c, rows), kTolerance);
}

TEST_F(CudaAttention, PrefillFull) {
  for (const Layout& layout : {kFull, kFullPlain}) {
    const Caches c = make(layout);
    fill(c, 0, 500);
    EXPECT_LT(compare(c, causal(0, 0, 77, kAll)), kTolerance) << layout.rotated;
    EXPECT_LT(compare(c, causal(0, 430, 500, kAll)), kTolerance) << layout.rotated;
    EXPECT_LT(compare(c, causal(0, 400, 500, kAll), true), kTolerance) << layout.rotated;
  }
}

// Numbers of rows around the sizes of tiles, GQA groups of one and of eight, and pages whose size no shift divides by.
TEST_F(CudaAttention, PrefillOddCounts) {
  for (Layout l : {kSliding, kFull, kFullPlain}) {
    for (const int heads : {1, 8}) {
      l.heads = heads, l.kv_heads = 1, l.page = heads == 1 ? 48 : 16, l.pages = 600 / l.page;
      const Caches c = make(l);
      fill(c, 0, 300);
      for (const int count : heads == 1 ? std::vector{33, 127, 129, 257} : std::vector{9, 15, 17, 33, 65}) {
        EXPECT_LT(compare(c, causal(0, 300 - count, 300, kAll)), kTolerance) << l.dim << " " << heads << " " << count;
        EXPECT_LT(compare(c, causal(0, 31, 31 + count, 20)), kTolerance) << l.dim << " " << heads << " " << count;
      }
    }
  }
}

// Spans of images inside causal text, and rows of several sequences, in every order.
TEST_F(CudaAttention, PrefillSpansAndSequences) {
  for (Layout l : {kSliding, kFull, kFullPlain}) {
    l.heads = 8, l.kv_heads = 2, l.seqs = 3, l.pages = 5;
    const Caches c = make(l);
    for (int s = 0; s < l.seqs; ++s) fill(c, s, 300);
    std::vector<Row> rows = causal(1, 3, 150, 100);
    for (Row& row : rows) {
      if (row.pos >= 20 && row.pos < 53) row.last = 52;
      if (row.pos >= 64 && row.pos < 128) row.last = 127;
    }
    for (const auto& [seq, begin, end] : {std::array{0, 290, 300}, {2, 0, 1}, {1, 200, 219}, {0, 64, 65}, {2, 1, 47}}) {
      const std::vector<Row> more = causal(seq, begin, end, seq == 1 ? 33 : kAll);
      rows.insert(rows.end(), more.begin(), more.end());
    }
    EXPECT_LT(compare(c, rows), kTolerance) << l.dim << " " << l.rotated;
  }
}

// What the cases above rely on: flash_prefill_mma() takes every shape of the kernels with wgmma.
TEST_F(CudaAttention, MmaTakesTheShapesOfWgmma) {
  for (const Layout& l : {kSliding, kFull, kFullPlain, Layout{16, 16, 72, 0, 0}, Layout{4, 4, 72, 8, 10}}) {
    const Caches c = make(l);
    const Twin q = random(kF16, {9, l.heads, l.dim}), out = poisoned(kBf16, {9, l.heads, l.dim}),
               at = device_rows(causal(0, 0, 9, kAll));
    EXPECT_TRUE(cuda::flash_prefill_mma_fits(call_of(out.gpu, q.gpu, at.gpu), cuda::kv_cache_view(c.gpu))) << l.dim;
    cuda::AttentionCall odd = call_of(out.gpu, q.gpu, at.gpu);
    odd.q_stride += 4;  // rows that no vector of 8 elements begins at
    EXPECT_FALSE(cuda::flash_prefill_mma_fits(odd, cuda::kv_cache_view(c.gpu))) << l.dim;
  }
}

TEST_F(CudaAttention, ARingThatHasWrapped) {
  Layout l = kSliding;
  l.pages = 3;  // 192 slots
  const Caches c = make(l);
  fill(c, 0, 500);
  EXPECT_LT(compare(c, causal(0, 499, 500, 100)), kTolerance);
  EXPECT_LT(compare(c, causal(0, 480, 500, 100)), kTolerance);
}

TEST_F(CudaAttention, SeveralSequences) {
  for (Layout l : {kSliding, kFull}) {
    l.seqs = 6, l.pages = 4;
    const Caches c = make(l);
    const int lengths[] = {250, 3, 130, 77, 64, 200};
    for (int s = 0; s < l.seqs; ++s) fill(c, s, lengths[s]);
    std::vector<Row> rows;
    for (int s = 0; s < l.seqs; ++s) rows.push_back({s, lengths[s] - 1, 0, lengths[s] - 1});
    EXPECT_LT(compare(c, rows), kTolerance);
    EXPECT_LT(compare(c, rows, true), kTolerance);
    const auto append = [&](const std::vector<Row>& more) { rows.insert(rows.end(), more.begin(), more.end()); };
    append(causal(2, 100, 130, kAll));
    append(causal(0, 200, 250, kAll));
    append(causal(5, 199, 200, kAll));
    EXPECT_LT(compare(c, rows), kTolerance);        // ranges for each kernel
    EXPECT_LT(compare(c, rows, true), kTolerance);  // one kernel for all
  }
}

Layout tower(int slots) {
  Layout l = {16, 16, 72, 0, 0};
  l.slots = slots;
  return l;
}

TEST_F(CudaAttention, VisionTower) {
  const Caches c = make(tower(1024));
  fill(c, 0, 630);
  EXPECT_LT(compare(c, image(0, 0, 630)), kTolerance);
  EXPECT_LT(compare(c, image(0, 0, 630), true), kTolerance);
  EXPECT_LT(compare(c, causal(0, 0, 500, 100)), kTolerance);
}

TEST_F(CudaAttention, VisionTowerOfAnySize) {
  for (const int patches : {1, 9, 63, 64, 129, 321, 2519, 2520, 10080}) {
    const Caches c = make(tower(patches));
    fill(c, 0, patches);
    for (const float spread : {0.3f, 6.0f}) {
      EXPECT_LT(compare_samples(c, image(0, 0, patches), spread), kTolerance) << patches << " " << spread;
    }
  }
}

TEST_F(CudaAttention, TwoImagesInOneBatch) {
  const Caches c = make(tower(4000));
  fill(c, 0, 4000);
  for (const int second : {0, 1}) {  // rows of one sequence, and of two; this cache has slots for one only
    std::vector<Row> rows = image(0, 0, 1395), more = image(second, 1395, 3915);
    rows.insert(rows.end(), more.begin(), more.end());
    EXPECT_LT(compare_samples(c, rows, 0.3f), kTolerance);
    EXPECT_LT(compare_samples(c, rows, 6.0f), kTolerance);
  }
}

// Scores that grow from tile to tile, and scores far below zero: the running maximum must follow.
TEST_F(CudaAttention, VisionTowerWithScoresThatGrow) {
  const int patches = 700;
  for (const float slope : {0.05f, -0.05f}) {
    const Caches c = make(tower(patches));
    std::vector<float> keys(static_cast<size_t>(patches * 16 * 72)), queries(keys.size(), 0.5f);
    for (size_t i = 0; i < keys.size(); ++i) {
      keys[i] = round_to_bf16((slope * static_cast<float>(i / (16 * 72)) - 20) / 36);
    }
    const std::vector<Row> rows = image(0, 0, patches);
    const Twin k = twin(kBf16, {patches, 16, 72}, keys), v = random(kBf16, {patches, 16, 72}), at = device_rows(rows),
               q = twin(kF16, {patches, 16, 72}, queries), out = poisoned(kBf16, {patches, 16, 72});
    ref().kv_write(c.ref, k.ref, v.ref, view(at.ref, rows));
    gpu().kv_write(c.gpu, k.gpu, v.gpu, view(at.gpu, rows));
    ref().attention(out.ref, q.ref, c.ref, view(at.ref, rows));
    gpu().attention(out.gpu, q.gpu, c.gpu, view(at.gpu, rows));
    EXPECT_LT(distance(out), kTolerance) << slope;
    ASSERT_TRUE(run_mma(out.gpu, q.gpu, c, at.gpu));
    EXPECT_LT(distance(out), kTolerance) << slope;
  }
}

TEST_F(CudaAttention, OddShapes) {
  for (const Layout& l : {Layout{4, 2, 16, 4, 20}, {4, 1, 32, 1, 80, 8}, {6, 3, 40, 0, 0}, {4, 4, 72, 8, 10}}) {
    const Caches c = make(l);
    fill(c, 0, 70);
    EXPECT_LT(compare(c, causal(0, 0, 70, 24)), kTolerance) << l.dim;
    EXPECT_LT(compare(c, causal(0, 69, 70, 24)), kTolerance) << l.dim;
  }
}

TEST_F(CudaAttention, CopiedPages) {
  for (Layout l : {kSliding, kFull, Layout{4, 1, 32, 1, 80, 8}}) {
    l.seqs = 2, l.pages = l.page == 1 ? 80 : 3;
    Caches c = make(l);
    fill(c, 0, 70);
    std::vector<int32_t> table(static_cast<size_t>(2 * l.pages));
    ref().read(table.data(), c.ref.pages);
    for (int i = 0; i < l.pages; ++i) {
      ref().kv_copy(c.ref, table[static_cast<size_t>(i)], table[static_cast<size_t>(l.pages + i)]);
      gpu().kv_copy(c.gpu, table[static_cast<size_t>(i)], table[static_cast<size_t>(l.pages + i)]);
    }
    EXPECT_LT(compare(c, causal(1, 60, 70, kAll)), kTolerance) << l.dim;
  }
}

struct QkvCase {
  Layout layout;
  bool v;
  int block, rotated;
  int rows;
  DType type;  // of q, k and v
};

class CudaQkNormRopeCache : public CudaAttention {
 protected:
  // qk_norm_rope_cache() against the small ops of ref: the query it returns, and the cache through attention().
  void check(const QkvCase& t) {
    const Layout& l = t.layout;
    Caches c = make(l);
    if (!t.v) c.k_norm = random(kF32, {l.dim}, 0.3f);
    if (l.rotated) c.gpu.k_norm = c.k_norm.gpu;
    const int n = t.rows, axes = l.dim / t.block;
    const std::vector<Row> rows = causal(0, 0, n, kAll);
    std::vector<float> freq(static_cast<size_t>(t.block / 2));
    for (int i = 0; i < t.rotated; ++i) freq[static_cast<size_t>(i)] = std::pow(100.0f, -2.0f * i / t.block);
    std::vector<int32_t> at;
    for (int i = 0; i < n * axes; ++i) at.push_back(i * 3 % 91);
    const Twin q = random(t.type, {n, l.heads, l.dim}), query = poisoned(kF16, {n, l.heads, l.dim}),
               k = random(t.type, {n, l.kv_heads, l.dim}), v = random(t.type, {n, l.kv_heads, l.dim}),
               scratch = random(t.type, {n, l.kv_heads, l.dim}), pos = ints({n, axes}, at),
               f = twin(kF32, {t.block / 2}, freq), q_norm = random(kF32, {l.dim}, 0.3f), device = device_rows(rows);
    ref().qk_norm_rope_cache(query.ref, q.ref, k.ref, t.v ? v.ref : Tensor(), scratch.ref,
                             {q_norm.ref, c.k_norm.ref, 1e-6f}, pos.ref, Rope{f.ref, t.block}, c.ref,
                             view(device.ref, rows));
    gpu().qk_norm_rope_cache(query.gpu, q.gpu, k.gpu, t.v ? v.gpu : Tensor(), scratch.gpu,
                             {q_norm.gpu, c.k_norm.gpu, 1e-6f}, pos.gpu, Rope{f.gpu, t.block}, c.gpu,
                             view(device.gpu, rows));
    EXPECT_LT(distance(query), kRoundedF16) << l.dim;
    std::vector<float> rounded = get(ref(), query.ref);
    for (float& value : rounded) value = round_to_bf16(value);
    EXPECT_GT(distance(rounded, get(ref(), query.ref)), kRoundedF16);  // the test would see a rounding to bfloat16
    const std::vector<Row> seen(rows.end() - std::min(n, 70), rows.end());
    EXPECT_LT(compare(c, seen), 0.0035) << l.dim;  // keys and values are rounded once more than those of ref
  }
};

TEST_F(CudaQkNormRopeCache, EqualsTheSmallOps) {
  for (const DType type : {kBf16, kF32}) {
    for (const QkvCase& t : {QkvCase{kSliding, true, 256, 128, 5, type},
                             {kFull, false, 512, 64, 5, type},
                             {kFullPlain, false, 512, 64, 3, type},
                             {{16, 16, 72, 0, 0}, true, 36, 18, 70, type},
                             {{16, 16, 72, 0, 0}, true, 36, 18, 515, type},
                             {kSliding, true, 256, 128, 513, type},
                             {kFull, false, 512, 64, 514, type},
                             {{4, 4, 72, 8, 10}, false, 36, 9, 33, type},
                             {{4, 1, 32, 8, 20, 8}, false, 32, 8, 9, type}}) {
      check(t);
    }
  }
}

// A value beyond the range of float16 becomes the largest number, so nothing becomes infinite or NaN.
TEST_F(CudaQkNormRopeCache, Saturates) {
  const Layout l = {2, 1, 16, 8, 2};
  const Caches c = make(l);
  const std::vector<Row> rows = {{0, 0, 0, 0}, {0, 1, 1, 1}};
  const Twin device = device_rows(rows), pos = ints({2, 1}, {0, 1}), norm = twin(kF32, {16}, std::vector(16, 1e6f)),
             freq = twin(kF32, {8}, std::vector(8, 0.0f)), q = random(kF32, {2, 2, 16}), k = random(kF32, {2, 1, 16}),
             v = random(kF32, {2, 1, 16}), query = poisoned(kF16, {2, 2, 16}), out = poisoned(kBf16, {2, 2, 16});
  gpu().qk_norm_rope_cache(query.gpu, q.gpu, k.gpu, v.gpu, v.gpu, {norm.gpu, norm.gpu, 1e-6f}, pos.gpu,
                           Rope{freq.gpu, 16}, c.gpu, view(device.gpu, rows));
  float most = 0;
  for (const float value : get(gpu(), query.gpu)) {
    EXPECT_LE(std::abs(value), 65504.0f);
    most = std::max(most, std::abs(value));
  }
  EXPECT_EQ(most, 65504.0f);
  gpu().attention(out.gpu, query.gpu, c.gpu, view(device.gpu, rows));
  for (const float value : get(gpu(), out.gpu)) EXPECT_LE(std::abs(value), 4.1f);  // |v| <= sqrt(dim): all finite
  const Twin large = twin(kF32, {2, 1, 16}, std::vector(32, -1e9f));
  gpu().kv_write(c.gpu, k.gpu, large.gpu, view(device.gpu, rows));
  gpu().attention(out.gpu, query.gpu, c.gpu, view(device.gpu, rows));
  for (const float value : get(gpu(), out.gpu)) EXPECT_EQ(value, round_to_bf16(-65504.0f));
}

}  // namespace
}  // namespace gemma4
