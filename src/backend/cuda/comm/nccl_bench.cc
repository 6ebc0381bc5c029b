// The time of the collective ops between GPUs: all-reduce at the sizes of a decode step and of a prefill chunk, alone
// and as a step does it (120 of them in one graph), and the gather of the logits. Skipped with fewer than 2 GPUs.
#include <benchmark/benchmark.h>

#include "backend/ranks.h"

namespace gemma4 {
namespace {

constexpr int64_t kHidden = 5376, kVocab = 262144;  // of 31B
constexpr int kPerStep = 120;                       // two for each of 60 layers

// The ranks of `count` GPUs, made once for the process.
const Ranks* ranks_of(int count, benchmark::State& state) {
  static Ranks ranks;
  try {
    if (ranks.size() != count) ranks = Ranks(), ranks = Ranks(make_cuda_ranks(count));
    return &ranks;
  } catch (const Error& error) {
    state.SkipWithError(error.what());
    return nullptr;
  }
}

// Times `calls` calls of body(backend) on every rank, in one graph where `graph`.
template <typename Body>
void measure(benchmark::State& state, const Ranks* ranks, int calls, bool graph, const Body& body) {
  static uint64_t key = 0;
  ++key;  // the tensors of an earlier graph are gone
  const auto round = [&](int r) {
    const auto issue = [&] {
      for (int i = 0; i < calls; ++i) body((*ranks)[r]);
    };
    graph ? (*ranks)[r].replay(key, issue) : issue();
    (*ranks)[r].sync();
  };
  for (int i = 0; i < 3; ++i) ranks->run(round);
  for (auto _ : state) ranks->run(round);
  state.counters["us_each"] = benchmark::Counter(static_cast<double>(state.iterations()) * calls * 1e-6,
                                                 benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

std::vector<Tensor> alloc_all(const Ranks& ranks, DType type, int64_t rows, int64_t cols) {
  std::vector<Tensor> tensors;
  for (int r = 0; r < ranks.size(); ++r) tensors.push_back(ranks[r].alloc(type, {rows, cols}));
  return tensors;
}

// Arguments: GPUs, rows, whether in a graph.
void all_reduce(benchmark::State& state) {
  const int gpus = static_cast<int>(state.range(0));
  const Ranks* ranks = ranks_of(gpus, state);
  if (!ranks) return;
  const auto x = alloc_all(*ranks, DType::kBF16, state.range(1), kHidden);
  measure(state, ranks, state.range(2) ? kPerStep : 10, state.range(2) != 0,
          [&](Backend& be) { be.all_reduce(x[static_cast<size_t>(be.rank())]); });
  for (int r = 0; r < gpus; ++r) (*ranks)[r].release(x[static_cast<size_t>(r)]);
}

// Arguments: GPUs, rows.
void gather_logits(benchmark::State& state) {
  const int gpus = static_cast<int>(state.range(0));
  const Ranks* ranks = ranks_of(gpus, state);
  if (!ranks) return;
  const auto x = alloc_all(*ranks, DType::kF32, state.range(1), kVocab);
  std::vector<int64_t> begins;
  for (int r = 0; r <= gpus; ++r) begins.push_back(kVocab / gpus * r);
  measure(state, ranks, 10, true, [&](Backend& be) { be.gather_columns(x[static_cast<size_t>(be.rank())], begins); });
  for (int r = 0; r < gpus; ++r) (*ranks)[r].release(x[static_cast<size_t>(r)]);
}

BENCHMARK(all_reduce)
    ->ArgNames({"gpus", "rows", "graph"})
    ->ArgsProduct({{2, 4, 8}, {1, 2, 4, 8, 16}, {1}})
    ->ArgsProduct({{2, 4, 8}, {512, 2048}, {0}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(gather_logits)
    ->ArgNames({"gpus", "rows"})
    ->ArgsProduct({{2, 4, 8}, {1, 16}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace gemma4
