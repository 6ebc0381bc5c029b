// Attention of many rows in bf16 tiles, by every engine of this machine and by plain loops, against ref: 31B's head
// sizes and awkward ones, windows, rings and pages of any size, several sequences in a batch.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/tiles/bf16_tiles.h"
#include "backend/op_testing.h"

namespace gemma4::cpu {
namespace {

struct Shape {
  int q_heads, kv_heads, dim;
  int page = 0, pages_per_seq = 1, seqs = 1;  // page 0: no page table
  int64_t written = 0;                        // keys of each sequence
  bool rounds = false;
};

class AttentionBf16 : public ::testing::TestWithParam<const TileEngine*> {
 protected:
  static Rows put_rows(Backend& b, const std::vector<Row>& rows) {
    const Tensor device = b.alloc(DType::kI32, {static_cast<int64_t>(rows.size()), 4});
    b.write(device, rows.data());
    return {device, rows};
  }

  static Floats thirds(Random& random, int64_t count) {  // random.values() are bf16, these are not
    Floats values = random.values(count, -3, 3);
    for (float& v : values) v /= 3;
    return values;
  }

  static KvCache make_kv(Backend& b, const Shape& s) {
    KvCacheConfig config;
    config.slots = s.page ? int64_t{s.page} * s.pages_per_seq * s.seqs : s.written;
    config.page = std::max(1, s.page);
    config.heads = s.kv_heads, config.dim = s.dim, config.rounds = s.rounds;
    KvCache kv = b.kv_alloc(config);
    if (s.page) {
      std::vector<int32_t> pages(static_cast<size_t>(s.seqs * s.pages_per_seq));
      for (size_t i = 0; i < pages.size(); ++i) pages[pages.size() - 1 - i] = static_cast<int32_t>(i);
      kv.pages = put_ints(b, pages, {s.seqs, s.pages_per_seq});
    }
    for (int32_t seq = 0; seq < s.seqs; ++seq) {
      Random random(100 + static_cast<uint32_t>(seq));
      for (int32_t pos = 0; pos < s.written; ++pos) {
        const int64_t size = int64_t{s.kv_heads} * s.dim;
        const Tensor k = put(b, thirds(random, size), {1, s.kv_heads, s.dim});
        const Tensor v = put(b, thirds(random, size), {1, s.kv_heads, s.dim});
        b.kv_write(kv, k, v, put_rows(b, {{seq, pos, 0, pos}}));
        b.sync();
        b.release(k), b.release(v);
      }
    }
    return kv;
  }

  static Floats attend(Backend& b, const KvCache& kv, const Shape& s, const std::vector<Row>& rows, size_t skip = 0) {
    Random random(5);
    const auto n = static_cast<int64_t>(rows.size() - skip);
    const int64_t width = int64_t{s.q_heads} * s.dim;
    const float size = 3.0f / std::sqrt(static_cast<float>(s.dim));  // scores of a few units, as q and k norms give
    Floats values = random.values(static_cast<int64_t>(rows.size()) * width, -size, size);
    values.erase(values.begin(), values.begin() + static_cast<int64_t>(skip) * width);
    const Tensor q = put(b, values, {n, s.q_heads, s.dim});
    const Tensor out = b.alloc(b.activation_type(), {n, s.q_heads, s.dim});
    const std::vector<Row> some(rows.begin() + static_cast<int64_t>(skip), rows.end());
    b.attention(out, q, kv, put_rows(b, some));
    return get(b, out);
  }

  double error(const Shape& s, const std::vector<Row>& rows) {
    return relative_error(attend(be_, make_kv(be_, s), s, rows), attend(*ref_, make_kv(*ref_, s), s, rows));
  }

  static std::vector<Row> causal(int32_t begin, int32_t end, int32_t window, int32_t seq = 0) {
    std::vector<Row> rows;
    for (int32_t p = begin; p < end; ++p) rows.push_back({seq, p, std::max(0, p - window), p});
    return rows;
  }
  static std::vector<Row> all(int32_t count) {
    std::vector<Row> rows;
    for (int32_t p = 0; p < count; ++p) rows.push_back({0, p, 0, count - 1});
    return rows;
  }

  void SetUp() override { be_.use_tiles(GetParam()); }
  CpuBackend be_{2};
  const std::unique_ptr<Backend> ref_ = make_ref();
};

// Both halves of q, k, p and v: what is left out is 2^-16 of a term.
constexpr double kSplit = 3e-5, kRounded = 8e-3;

TEST_P(AttentionBf16, SlidingLayer) {
  const Shape s{.q_heads = 4, .kv_heads = 2, .dim = 256, .page = 32, .pages_per_seq = 12, .written = 300};
  EXPECT_LE(error(s, causal(60, 300, 100)), kSplit);
}

TEST_P(AttentionBf16, FullLayerWithManyQueryHeads) {
  const Shape s{.q_heads = 8, .kv_heads = 1, .dim = 512, .page = 64, .pages_per_seq = 5, .written = 290};
  EXPECT_LE(error(s, causal(200, 290, 1 << 20)), kSplit);
}

TEST_P(AttentionBf16, TheVisionTowerRoundsOnce) {
  const Shape s{.q_heads = 2, .kv_heads = 2, .dim = 72, .written = 333, .rounds = true};
  const double rounded = error(s, all(333));
  EXPECT_LE(rounded, kRounded);
  EXPECT_GE(rounded, 1e-4);  // else it would not be bf16
  Shape kept = s;
  kept.rounds = false;
  EXPECT_LE(error(kept, all(333)), kSplit);
}

TEST_P(AttentionBf16, AwkwardShapes) {
  for (const int dim : {1, 12, 31, 33, 80}) {
    for (const int page : {0, 1, 7, 48, 96}) {
      const Shape s{.q_heads = 3,
                    .kv_heads = 1,
                    .dim = dim,
                    .page = page,
                    .pages_per_seq = page ? 150 / page + 1 : 1,
                    .written = 150};
      EXPECT_LE(error(s, causal(3, 150, 1 << 20)), 2 * kSplit) << "dim " << dim << ", pages of " << page;
      EXPECT_LE(error(s, causal(90, 150, 17)), 2 * kSplit) << "dim " << dim << ", pages of " << page << ", window";
    }
  }
}

TEST_P(AttentionBf16, ARing) {
  const Shape s{.q_heads = 2, .kv_heads = 1, .dim = 64, .page = 32, .pages_per_seq = 6, .written = 400};
  EXPECT_LE(error(s, causal(340, 400, 90)), kSplit);
}

// Long and short runs of rows: each row the bits that it has in another batch.
TEST_P(AttentionBf16, ARowDoesNotDependOnTheOthers) {
  const Shape s{.q_heads = 4, .kv_heads = 2, .dim = 64, .page = 16, .pages_per_seq = 20, .seqs = 4, .written = 310};
  std::vector<Row> rows = causal(250, 253, 1 << 20, 1);
  for (const Row& row : causal(100, 310, 70, 0)) rows.push_back(row);
  for (const Row& row : causal(309, 310, 1 << 20, 3)) rows.push_back(row);
  for (const Row& row : causal(10, 50, 1 << 20, 2)) rows.push_back(row);
  EXPECT_LE(error(s, rows), kSplit);
  const KvCache kv = make_kv(be_, s);
  const Floats whole = attend(be_, kv, s, rows);
  for (const size_t skip : {1, 3, 100, 180}) {  // the run of 210 rows keeps at least 33
    const Floats rest = attend(be_, kv, s, rows, skip);
    const size_t width = 4 * 64;
    for (size_t i = 0; i < rest.size(); ++i) ASSERT_EQ(rest[i], whole[skip * width + i]) << skip << " " << i;
  }
}

// A page may hold what another sequence left after the last key: it counts for nothing, whatever it is.
TEST_P(AttentionBf16, WhatLiesBehindTheLastKeyIsNotRead) {
  const Shape s{.q_heads = 1, .kv_heads = 1, .dim = 32, .page = 64, .pages_per_seq = 2, .written = 100};
  const KvCache kv = make_kv(be_, s);
  const Floats clean = attend(be_, kv, s, causal(0, 90, 1 << 20));
  const Floats none(32, std::numeric_limits<float>::quiet_NaN());
  const Tensor bad = put(be_, none, {1, 1, 32});
  for (int32_t pos = 90; pos < 128; ++pos) be_.kv_write(kv, bad, bad, put_rows(be_, {{0, pos, 0, pos}}));
  EXPECT_EQ(attend(be_, kv, s, causal(0, 90, 1 << 20)), clean);
}

TEST_P(AttentionBf16, FewRowsAndPreciseOnesStayFloat32) {
  const Shape s{.q_heads = 2, .kv_heads = 2, .dim = 72, .written = 64, .rounds = true};
  EXPECT_LE(error(s, causal(33, 64, 1 << 20)), 1e-5);
  EXPECT_GE(error(s, causal(32, 64, 1 << 20)), 1e-4);
  be_.allow_bf16(false);
  EXPECT_LE(error(s, causal(32, 64, 1 << 20)), 1e-5);
}

std::string name_of(const ::testing::TestParamInfo<const TileEngine*>& info) {
  std::string name = info.param->name;
  std::erase_if(name, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); });
  return name;
}
INSTANTIATE_TEST_SUITE_P(Engines, AttentionBf16, ::testing::ValuesIn(tile_engines()), name_of);

}  // namespace
}  // namespace gemma4::cpu
