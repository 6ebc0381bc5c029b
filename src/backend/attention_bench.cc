// attend at 31B's shapes on two threads. Bytes: keys and values a row may see, once for each row; FLOPs: both products
// over the keys each row may see.
#include <algorithm>

#include "backend/op_data_testing.h"
#include "backend/roofline_testing.h"

namespace gemma4 {
namespace {

struct Shape {
  int q_heads, kv_heads, dim, window;  // window 0: every row sees all keys
};
constexpr Shape kSliding{32, 16, 256, 1024}, kFull{32, 4, 512, 1 << 30}, kVision{16, 16, 72, 0};

// `rows` rows of each of `seqs` sequences, the last of which sees `keys` keys or its window of them.
void attention(benchmark::State& state, Shape s) {
  const auto seqs = static_cast<int32_t>(state.range(0)), rows = static_cast<int32_t>(state.range(1)),
             keys = static_cast<int32_t>(state.range(2));
  const auto be = make_cpu(kBenchThreads);
  Random random(1);
  constexpr int kPage = 64;
  const int pages = (keys + kPage - 1) / kPage;
  KvCache kv = be->kv_alloc({int64_t{seqs} * pages * kPage, kPage, s.kv_heads, s.dim, 0});
  std::vector<int32_t> table(static_cast<size_t>(seqs * pages));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  kv.pages = put_ints(*be, table, {seqs, pages});
  std::vector<Row> host;
  double pairs = 0;
  for (int32_t seq = 0; seq < seqs; ++seq) {
    for (int32_t pos = keys - rows; pos < keys; ++pos) {
      host.push_back({seq, pos, s.window ? std::max(0, pos - s.window + 1) : 0, s.window ? pos : keys - 1});
      pairs += host.back().last - host.back().first + 1;
    }
  }
  const auto n = static_cast<int64_t>(host.size());
  const Tensor q = put(*be, random.values(n * s.q_heads * s.dim), {n, s.q_heads, s.dim});
  const Tensor out = be->alloc(DType::kF32, {n, s.q_heads, s.dim});
  for (int32_t pos = 0; pos < keys; ++pos) {  // the same key and value in every sequence
    std::vector<Row> one;
    for (int32_t seq = 0; seq < seqs; ++seq) one.push_back({seq, pos, 0, pos});
    const Tensor k = out.slice(0, 1).columns(0, int64_t{s.kv_heads} * s.dim).split(s.kv_heads, s.dim);
    const Floats values = random.values(k.row_size());
    be->write(k, values.data());
    for (const Row& row : one) be->kv_write(kv, k, k, {Tensor(), {&row, 1}});
  }
  const Rows all{Tensor(), host};
  be->attention(out, q, kv, all);
  for (auto _ : state) be->attention(out, q, kv, all);
  const double bytes = rows == 1 ? pairs * 2 * s.kv_heads * s.dim * 4 : 0;
  report(state, bytes, pairs * 4 * s.q_heads * s.dim);
}

void decode(benchmark::internal::Benchmark* b) { b->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(0.1); }
BENCHMARK_CAPTURE(attention, sliding, kSliding)
    ->Args({1, 1, 2048})
    ->Args({16, 1, 2048})
    ->Args({1, 512, 2048})
    ->Apply(decode);
BENCHMARK_CAPTURE(attention, full, kFull)->Args({1, 1, 8192})->Args({16, 1, 2048})->Args({1, 256, 2048})->Apply(decode);
BENCHMARK_CAPTURE(attention, vision, kVision)->Args({1, 2520, 2520})->Apply(decode);

}  // namespace
}  // namespace gemma4
