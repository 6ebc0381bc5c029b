// What this machine can do at most, measured in the same run as the kernels: bytes read from memory and float32
// multiply-adds in registers, by as many threads as the backend uses. Kernels report their share of both.
#pragma once

#include <benchmark/benchmark.h>

namespace gemma4 {

constexpr int kBenchThreads = 2;

struct Roofline {
  double bytes_per_second;  // reads of 512 MiB, in huge pages
  double flops_per_second;  // 2 for a multiply-add
};

// Best of several short tries, measured again where the last measurement is older than a second: on a shared machine
// the read bandwidth changes from one second to the next.
Roofline roofline();

// Adds counters to a benchmark whose iteration reads `bytes` of weights or cache and does `flops`: rates, and the share
// of the roofline: the least time that either limit allows over the time taken.
void report(benchmark::State& state, double bytes, double flops);

}  // namespace gemma4
