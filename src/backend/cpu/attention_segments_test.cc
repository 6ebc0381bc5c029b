// Attention over many keys by few rows, whose segments of keys are computed beside each other: the bits of one thread,
// which computes them one after the other, and of the same rows among others; and ref's numbers.
#include <gtest/gtest.h>

#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "backend/op_testing.h"

namespace gemma4::cpu {
namespace {

constexpr int kQueryHeads = 4, kHeads = 1, kDim = 64, kPage = 32, kPages = 40, kSeqs = 2;
constexpr int32_t kWritten = kPage * kPages;

Rows put_rows(Backend& b, const std::vector<Row>& rows) {
  const Tensor device = b.alloc(DType::kI32, {static_cast<int64_t>(rows.size()), 4});
  b.write(device, rows.data());
  return {device, rows};
}

KvCache filled(Backend& b) {
  KvCacheConfig config;
  config.slots = int64_t{kSeqs} * kWritten, config.page = kPage, config.heads = kHeads, config.dim = kDim;
  KvCache kv = b.kv_alloc(config);
  std::vector<int32_t> pages;
  for (int i = 0; i < kSeqs * kPages; ++i) pages.push_back((i * 7 + 3) % (kSeqs * kPages));
  kv.pages = put_ints(b, pages, {kSeqs, kPages});
  for (int32_t seq = 0; seq < kSeqs; ++seq) {
    Random random(100 + static_cast<uint32_t>(seq));
    std::vector<Row> rows;
    for (int32_t pos = 0; pos < kWritten; ++pos) rows.push_back({seq, pos, 0, pos});
    const Tensor k = put(b, random.values(kWritten * kDim), {kWritten, kHeads, kDim});
    const Tensor v = put(b, random.values(kWritten * kDim), {kWritten, kHeads, kDim});
    b.kv_write(kv, k, v, put_rows(b, rows));
    b.sync();
  }
  return kv;
}

// Row i has the query that belongs to its sequence and position.
Floats attend(Backend& b, const KvCache& kv, const std::vector<Row>& rows) {
  Floats queries;
  for (const Row& row : rows) {
    Random random(static_cast<uint32_t>(row.seq * 5000 + row.pos));
    const Floats some = random.values(kQueryHeads * kDim, -0.4f, 0.4f);
    queries.insert(queries.end(), some.begin(), some.end());
  }
  const auto n = static_cast<int64_t>(rows.size());
  const Tensor q = put(b, queries, {n, kQueryHeads, kDim}), out = b.alloc(DType::kF32, {n, kQueryHeads, kDim});
  b.attention(out, q, kv, put_rows(b, rows));
  return get(b, out);
}

std::vector<Row> rows_from(int32_t begin, int32_t end, int32_t window, int32_t seq) {
  std::vector<Row> rows;
  for (int32_t p = begin; p < end; ++p) rows.push_back({seq, p, std::max(0, p - window), p});
  return rows;
}

const std::vector<std::vector<Row>> kBatches = {
    rows_from(1279, 1280, 1 << 20, 0), rows_from(255, 257, 1 << 20, 1), rows_from(1000, 1008, 300, 0),
    rows_from(700, 701, 0, 1),         rows_from(511, 512, 255, 0),     rows_from(512, 513, 256, 1)};

TEST(AttentionSegments, ManyThreadsHaveTheBitsOfOne) {
  CpuBackend one(1), many(7);
  const std::unique_ptr<Backend> ref = make_ref();
  const KvCache kv_one = filled(one), kv_many = filled(many), kv_ref = filled(*ref);
  for (const std::vector<Row>& rows : kBatches) {
    const Floats got = attend(many, kv_many, rows);
    EXPECT_EQ(got, attend(one, kv_one, rows)) << rows[0].pos;
    EXPECT_LE(relative_error(got, attend(*ref, kv_ref, rows)), 1e-5) << rows[0].pos;
  }
}

TEST(AttentionSegments, ARowHasTheSameBitsAmongOthers) {
  CpuBackend many(4);
  const KvCache kv = filled(many);
  std::vector<Row> all;
  for (const std::vector<Row>& rows : kBatches) all.insert(all.end(), rows.begin(), rows.end());
  for (const Row& row : rows_from(100, 300, 90, 1)) all.push_back(row);  // tasks enough for all threads
  const Floats together = attend(many, kv, all);
  size_t at = 0;
  for (const std::vector<Row>& rows : kBatches) {
    const Floats alone = attend(many, kv, rows);
    EXPECT_EQ(alone, Floats(together.begin() + static_cast<int64_t>(at),
                            together.begin() + static_cast<int64_t>(at + alone.size())))
        << rows[0].pos;
    at += alone.size();
  }
}

}  // namespace
}  // namespace gemma4::cpu
