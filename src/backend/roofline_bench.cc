#include "backend/roofline_bench.h"

#include <algorithm>
#include <chrono>

#include "backend/cpu/peak.h"
#include "base/threads.h"

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

}  // namespace

Roofline roofline() {
  static ThreadPool pool(kBenchThreads);
  static const cpu::PeakMemory memory(int64_t{1} << 29);
  static Roofline measured{0, 0};
  static Clock::time_point when;
  if (measured.bytes_per_second > 0 && seconds(when) < 1) return measured;
  measured = {0, 0};
  for (int i = 0; i < 5; ++i) {
    auto start = Clock::now();
    memory.read(pool);
    measured.bytes_per_second =
        std::max(measured.bytes_per_second, static_cast<double>(memory.bytes()) / seconds(start));
    start = Clock::now();
    const double flops = cpu::peak_multiply_adds(pool);
    measured.flops_per_second = std::max(measured.flops_per_second, flops / seconds(start));
  }
  when = Clock::now();
  return measured;
}

void report(benchmark::State& state, double bytes, double flops) {
  const Roofline peak = roofline();
  const double n = static_cast<double>(state.iterations());
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(bytes * n * 1e-9, Counter::kIsRate);
  state.counters["GFLOP/s"] = Counter(flops * n * 1e-9, Counter::kIsRate);
  state.counters["%read"] = Counter(100 * bytes * n / peak.bytes_per_second, Counter::kIsRate);
  state.counters["%fma"] = Counter(100 * flops * n / peak.flops_per_second, Counter::kIsRate);
  const double least = std::max(bytes / peak.bytes_per_second, flops / peak.flops_per_second);
  state.counters["%roof"] = Counter(100 * least * n, Counter::kIsRate);
}

}  // namespace gemma4
