// linear at 31B's shapes on two threads: decode (1 to 16 rows, weights from memory) and prefill (many rows).
#include "backend/op_data_testing.h"
#include "backend/roofline_testing.h"

namespace gemma4 {
namespace {

constexpr int64_t kRows = 21504,
                  kCols = 5376;  // gate or up: 72 MB in int4 with its scales

void linear(benchmark::State& state, Format format, int64_t rows, int64_t cols) {
  const auto be = make_cpu(kBenchThreads);
  Random random(1);
  // One panel of random rows, repeated: measures the same as all random rows, and is fast to make.
  const HostMatrix some =
      random_matrix(format, 128, cols, format == Format::kInt8 ? static_cast<int>(cols) : 32, random);
  const std::vector<Matrix> parts(static_cast<size_t>(rows / 128), some.matrix);
  const int64_t before = be->memory_used();
  Matrix copies[3];  // used in turn, so that none is found in the cache
  for (Matrix& w : copies) w = be->upload(parts);
  const auto bytes = static_cast<double>(be->memory_used() - before) / 3;
  const int64_t n = state.range(0);
  const Tensor x = put(*be, random.values(n * cols), {n, cols});
  const Tensor out = be->alloc(DType::kF32, {n, rows});
  size_t turn = 0;
  be->linear(out, x, copies[2]);
  for (auto _ : state) be->linear(out, x, copies[turn++ % 3]);
  report(state, bytes, 2.0 * static_cast<double>(n * rows * cols));
}

void arguments(benchmark::internal::Benchmark* b) {
  b->Arg(1)->Arg(2)->Arg(4)->Arg(8)->Arg(16)->Arg(128)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(0.1);
}
BENCHMARK_CAPTURE(linear, int4, Format::kInt4, kRows, kCols)->Apply(arguments);
BENCHMARK_CAPTURE(linear, int8, Format::kInt8, kRows, kCols)->Apply(arguments);
BENCHMARK_CAPTURE(linear, bf16, Format::kBF16, kRows, kCols)->Apply(arguments);
BENCHMARK_CAPTURE(linear, int4_down, Format::kInt4, kCols, kRows)->Apply(arguments);
BENCHMARK_CAPTURE(linear, q4_0, Format::kQ4_0, kRows, kCols)->Apply(arguments);
BENCHMARK_CAPTURE(linear, q4_K, Format::kQ4_K, kRows, kCols)->Apply(arguments);
BENCHMARK_CAPTURE(linear, q6_K, Format::kQ6_K, kRows, kCols)->Apply(arguments);

}  // namespace
}  // namespace gemma4
