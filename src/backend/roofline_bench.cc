#include "backend/roofline_testing.h"

#include <chrono>

#include "backend/roofline.h"

namespace gemma4 {
namespace {

// Measured again where the last measurement is older than a second.
Roofline roofline() {
  using Clock = std::chrono::steady_clock;
  static RooflineMeter meter(kBenchThreads);
  static Roofline measured;
  static Clock::time_point when;
  if (measured.bytes_per_second == 0 || Clock::now() - when > std::chrono::seconds(1)) {
    measured = meter.measure();
    when = Clock::now();
  }
  return measured;
}

}  // namespace

void report(benchmark::State& state, double bytes, double flops) {
  const Roofline peak = roofline();
  const double n = static_cast<double>(state.iterations());
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(bytes * n * 1e-9, Counter::kIsRate);
  state.counters["GFLOP/s"] = Counter(flops * n * 1e-9, Counter::kIsRate);
  state.counters["%read"] = Counter(100 * bytes * n / peak.bytes_per_second, Counter::kIsRate);
  state.counters["%fma"] = Counter(100 * flops * n / peak.flops_per_second, Counter::kIsRate);
  state.counters["%roof"] = Counter(100 * peak.least_seconds(bytes, flops) * n, Counter::kIsRate);
}

}  // namespace gemma4
