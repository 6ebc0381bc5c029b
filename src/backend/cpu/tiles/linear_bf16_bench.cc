// Products of many rows in bf16 at 31B's shapes, as a share of what tile products alone reach on the same threads
// ("%peak"). BENCH_THREADS: how many threads, 2 where it is not set.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/tiles/bf16_tiles.h"
#include "backend/op_data_testing.h"

namespace gemma4::cpu {
namespace {

int bench_threads() {
  const char* count = std::getenv("BENCH_THREADS");
  return count == nullptr ? 2 : std::max(1, std::atoi(count));
}

const TileEngine& engine_of(benchmark::State& state) {
  const TileEngine& engine = *tile_engines().front();
  state.SetLabel(engine.name);
  return engine;
}

benchmark::Counter rate(double flops) {
  return benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
}

// FLOP/s of tile products from the first cache on all threads, the best of five.
double peak(const TileEngine& engine) {
  ThreadPool pool(bench_threads());
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](int) { tile_products(engine); });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, tile_product_flops() * pool.threads() / took.count());
  }
  return best;
}

void tile_peak(benchmark::State& state) {
  const TileEngine& engine = engine_of(state);
  ThreadPool pool(bench_threads());
  for (auto _ : state) pool.run([&](int) { tile_products(engine); });
  state.counters["FLOP/s"] = rate(tile_product_flops() * pool.threads());
}

void linear_bf16(benchmark::State& state, Format format, int64_t rows, int64_t cols) {
  const TileEngine& engine = engine_of(state);
  static const double most = peak(engine);
  CpuBackend be(bench_threads());
  be.use_tiles(&engine);
  Random random(1);
  const HostMatrix some =
      random_matrix(format, 128, cols, format == Format::kInt8 ? static_cast<int>(cols) : 32, random);
  const std::vector<Matrix> parts(static_cast<size_t>(rows / 128), some.matrix);
  const Matrix w = be.upload(parts);
  const int64_t n = state.range(0);
  const Tensor x = put(be, random.values(n * cols), {n, cols});
  const Tensor out = be.alloc(DType::kF32, {n, rows});
  const double flops = 2.0 * static_cast<double>(n * rows * cols);
  for (auto _ : state) be.linear(out, x, w);
  state.counters["FLOP/s"] = rate(flops);
  state.counters["%peak"] = rate(100 * flops / most);
}

void arguments(benchmark::internal::Benchmark* b) {
  b->Arg(32)->Arg(128)->Arg(512)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(0.1);
}
BENCHMARK(tile_peak)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(linear_bf16, int4, Format::kInt4, 21504, 5376)->Apply(arguments);
BENCHMARK_CAPTURE(linear_bf16, int8, Format::kInt8, 21504, 5376)->Apply(arguments);
BENCHMARK_CAPTURE(linear_bf16, bf16, Format::kBF16, 21504, 5376)->Apply(arguments);
BENCHMARK_CAPTURE(linear_bf16, int4_down, Format::kInt4, 5376, 21504)->Apply(arguments);

}  // namespace
}  // namespace gemma4::cpu
