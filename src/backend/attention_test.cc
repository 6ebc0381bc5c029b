// kv_write, attention and kv_copy against ref: the head sizes and grouped KV heads of 31B's three attention shapes,
// rings, pages of any size, several sequences in one batch.
#include <algorithm>
#include <cmath>

#include "backend/op_testing.h"

namespace gemma4 {
namespace {

struct Case {
  int q_heads, kv_heads, dim;
  int page, pages_per_seq, seqs;  // page 0: no page table
  std::vector<Row> rows;
  int64_t written;    // keys of each sequence, positions 0 .. written - 1
  int64_t chunk = 0;  // kv_write in chunks of so many; 0: all at once
};

class AttentionTest : public OpTest {
 protected:
  // Pages of a sequence, in scrambled order.
  static std::vector<int32_t> page_table(const Case& c) {
    const int n = c.seqs * c.pages_per_seq;
    std::vector<int32_t> pages(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) pages[static_cast<size_t>(i)] = (i * 7 + 3) % n;
    std::sort(pages.begin(), pages.end());
    for (int i = 0; i < n; ++i) std::swap(pages[static_cast<size_t>(i)], pages[static_cast<size_t>((i * 5 + 1) % n)]);
    return pages;
  }

  static KvCache make_kv(Backend& b, const Case& c) {
    KvCacheConfig config;
    config.slots = c.page ? int64_t{c.page} * c.pages_per_seq * c.seqs : c.written;
    config.page = std::max(1, c.page);
    config.heads = c.kv_heads, config.dim = c.dim;
    KvCache kv = b.kv_alloc(config);
    if (c.page) kv.pages = put_ints(b, page_table(c), {c.seqs, c.pages_per_seq});
    return kv;
  }

  static Rows put_rows(Backend& b, const std::vector<Row>& rows) {
    const Tensor device = b.alloc(DType::kI32, {static_cast<int64_t>(rows.size()), 4});
    b.write(device, rows.data());
    return {device, rows};
  }

  // k and v of position p of sequence s are the same numbers for every backend.
  static void fill(Backend& b, const Case& c, const KvCache& kv) {
    const int64_t step = c.chunk ? c.chunk : c.written;
    for (int32_t seq = 0; seq < c.seqs; ++seq) {
      Random random(100 + static_cast<uint32_t>(seq));
      for (int64_t begin = 0; begin < c.written; begin += step) {
        const int64_t count = std::min(step, c.written - begin);
        std::vector<Row> rows;
        for (int64_t i = 0; i < count; ++i) {
          const auto pos = static_cast<int32_t>(begin + i);
          rows.push_back({seq, pos, 0, pos});
        }
        const int64_t size = count * c.kv_heads * c.dim;
        const Tensor k = put(b, random.values(size), {count, c.kv_heads, c.dim});
        const Tensor v = put(b, random.values(size), {count, c.kv_heads, c.dim});
        b.kv_write(kv, k, v, put_rows(b, rows));
        b.sync();
        b.release(k), b.release(v);
      }
    }
  }

  static Floats run(Backend& b, const Case& c) {
    const KvCache kv = make_kv(b, c);
    fill(b, c, kv);
    Random random(5);
    const auto n = static_cast<int64_t>(c.rows.size());
    const float size = 3.0f / std::sqrt(static_cast<float>(c.dim));  // scores of a few units, as q and k norms give
    const Tensor q = put(b, random.values(n * c.q_heads * c.dim, -size, size), {n, c.q_heads, c.dim});
    const Tensor out = b.alloc(b.activation_type(), {n, c.q_heads, c.dim});
    b.attention(out, q, kv, put_rows(b, c.rows));
    return get(b, out);
  }

  void expect_equal(const Case& c) {
    // Scores are sums of dim products in float32 and enter an exponential: 2^-24 * sqrt(dim) * |score|, twice.
    EXPECT_LE(relative_error(run(*be, c), run(*ref, c)), tolerance(*be, 2e-6))
        << c.q_heads << "/" << c.kv_heads << " heads of " << c.dim << ", page " << c.page << ", " << c.rows.size()
        << " rows";
  }
};

std::vector<Row> causal(int32_t seq, int32_t begin, int32_t count, int32_t window) {
  std::vector<Row> rows;
  for (int32_t pos = begin; pos < begin + count; ++pos) rows.push_back({seq, pos, std::max(0, pos - window + 1), pos});
  return rows;
}

// Sliding layers of 31B: 32 heads on 16 of 256; full layers: 32 on 4 of 512. One row, and a chunk.
TEST_P(AttentionTest, DecodeAndChunkOf31B) {
  const int sliding = kSlowBuild ? 60 : 200;
  for (const int rows : {1, 9}) {
    expect_equal({32, 16, 256, 64, 4, 1, causal(0, sliding - rows, rows, 128), sliding});
    expect_equal({32, 4, 512, 64, 4, 1, causal(0, sliding - rows, rows, 1 << 20), sliding});
  }
  expect_equal({4, 2, 256, 64, 4, 1, causal(0, 20, 150, 100), 170});
}

// The vision tower: as many KV heads as heads, size 72, every row sees all.
TEST_P(AttentionTest, WholeImage) {
  for (const int n : {9, 63, 252}) {
    std::vector<Row> rows;
    for (int32_t i = 0; i < n; ++i) rows.push_back({0, i, 0, n - 1});
    expect_equal({2, 2, 72, 0, 0, 1, rows, n});
  }
}

TEST_P(AttentionTest, HeadSizes) {
  for (const int dim : {2, 12, 16, 24, 40, 64, 72, 80, 96, 128, 512}) {
    expect_equal({2, 1, dim, 32, 3, 1, causal(0, 33, 40, 50), 73});
    expect_equal({3, 3, dim, 32, 3, 1, causal(0, 72, 1, 50), 73});
  }
}

// Ranges of keys at every position relative to tiles of 32 and blocks of 128.
TEST_P(AttentionTest, Intervals) {
  std::vector<Row> rows;
  for (const int32_t first : {0, 1, 31, 32, 33, 127, 128, 129, 200}) {
    for (const int32_t last : {0, 1, 31, 32, 33, 127, 128, 159, 160, 255, 256, 299}) {
      if (first <= last) rows.push_back({0, last, first, last});
    }
  }
  expect_equal({2, 1, 16, 32, 10, 1, rows, 300});
  expect_equal({2, 1, 16, 0, 0, 1, rows, 300});
  for (const Row& row : rows) expect_equal({2, 1, 16, 64, 5, 1, {row}, 300});
}

// An image inside a chunk on a sliding layer: its rows see forward to its last row.
TEST_P(AttentionTest, ImageBlock) {
  std::vector<Row> rows = causal(0, 0, 90, 24);
  for (int32_t pos = 20; pos < 70; ++pos) rows[static_cast<size_t>(pos)].last = 69;
  expect_equal({4, 2, 16, 32, 3, 1, rows, 90});
}

// A ring of n * page slots: positions beyond it overwrite the oldest.
TEST_P(AttentionTest, RingWrapsAround) {
  for (const int page : {1, 4, 16, 32, 64}) {
    const int n = (96 + page - 1) / page;
    expect_equal({2, 1, 16, page, n, 1, causal(0, 250, 30, 60), 280, 7});
    expect_equal({2, 1, 16, page, n, 1, causal(0, 279, 1, 60), 280, 7});
  }
}

// Rows of several sequences, decode rows and chunks mixed, never see each other's keys.
TEST_P(AttentionTest, MixedSequences) {
  for (const int page : {8, 32}) {
    std::vector<Row> rows = causal(1, 99, 1, 1000);
    for (const Row& row : causal(0, 40, 30, 50)) rows.push_back(row);
    for (const Row& row : causal(3, 7, 1, 50)) rows.push_back(row);
    for (const Row& row : causal(2, 0, 60, 20)) rows.push_back(row);
    for (const Row& row : causal(1, 98, 1, 3)) rows.push_back(row);
    expect_equal({8, 1, 32, page, (104 + page - 1) / page, 4, rows, 100});
  }
}

// A decode row gets the same bits alone and beside others.
TEST_P(AttentionTest, AloneAsInABatch) {
  if (be->activation_type() != DType::kF32) GTEST_SKIP() << "bit equality across batch sizes is the cpu backend's rule";
  Case all{2, 1, 64, 32, 4, 4, {}, 100};
  for (int32_t seq = 0; seq < 4; ++seq) all.rows.push_back({seq, 99 - seq, 3 * seq, 99 - seq});
  const Floats together = run(*be, all);
  Case first = all;
  first.rows.resize(1);
  EXPECT_EQ(run(*be, first), Floats(together.begin(), together.begin() + 128));
}

TEST_P(AttentionTest, CopiedPageIsRead) {
  for (const int page : {8, 32}) {
    Floats results[2];
    for (int i = 0; i < 2; ++i) {
      Backend& b = i == 0 ? *be : *ref;
      Case c{2, 1, 24, page, 2, 2, causal(1, 2 * page - 1, 1, 100), 2 * page};
      const KvCache kv = make_kv(b, c);
      fill(b, c, kv);
      const std::vector<int32_t> pages = page_table(c);
      b.kv_copy(kv, pages[0], pages[2]);  // sequence 1 now begins as sequence 0 does
      const Tensor q = put(b, Random(5).values(48), {1, 2, 24});
      const Tensor out = b.alloc(b.activation_type(), {1, 2, 24});
      b.attention(out, q, kv, put_rows(b, c.rows));
      results[i] = get(b, out);
    }
    EXPECT_LE(relative_error(results[0], results[1]), tolerance(*be, 2e-6)) << page;
  }
}

// The canary: one key too many at either end must be seen.
TEST_P(AttentionTest, SeesOneKeyTooMany) {
  Case c{2, 1, 64, 32, 4, 1, {{0, 99, 50, 98}}, 100};
  const Floats want = run(*ref, c);
  c.rows[0] = {0, 99, 49, 98};
  EXPECT_GT(relative_error(run(*be, c), want), tolerance(*be, 2e-6));
  c.rows[0] = {0, 99, 50, 99};
  EXPECT_GT(relative_error(run(*be, c), want), tolerance(*be, 2e-6));
}

GEMMA4_FOR_EACH_BACKEND(AttentionTest);

}  // namespace
}  // namespace gemma4
