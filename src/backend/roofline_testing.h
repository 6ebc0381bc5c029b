// What kernels report beside their time: their share of the roofline (roofline.h), measured in the same run.
#pragma once

#include <benchmark/benchmark.h>

namespace gemma4 {

constexpr int kBenchThreads = 2;

// Adds counters to a benchmark whose iteration reads `bytes` of weights or cache and does `flops`: rates, and the share
// of the roofline: the least time that either limit allows over the time taken.
void report(benchmark::State& state, double bytes, double flops);

}  // namespace gemma4
