// The ops that touch each element once, for one row and for a chunk of 31B, and the price of handing a loop to the
// pool: a decode step of 31B has some 500 such calls.
#include "backend/op_data_testing.h"
#include "backend/roofline_testing.h"
#include "base/threads.h"

namespace gemma4 {
namespace {

constexpr int64_t kHidden = 5376, kInner = 21504;

void rms_norm(benchmark::State& state) {
  const auto be = make_cpu(kBenchThreads);
  const int64_t rows = state.range(0);
  Random random(1);
  const Tensor x = put(*be, random.values(rows * kHidden), {rows, kHidden});
  const Tensor weight = put(*be, random.values(kHidden), {1, kHidden});
  const Tensor out = be->alloc(DType::kF32, {rows, kHidden});
  for (auto _ : state) be->rms_norm(out, x, weight, 1e-6f);
  report(state, static_cast<double>(rows * kHidden * 4 * 2), 0);
}

void add_rms_norm(benchmark::State& state) {
  const auto be = make_cpu(kBenchThreads);
  const int64_t rows = state.range(0);
  Random random(2);
  const Tensor x = put(*be, random.values(rows * kHidden), {rows, kHidden});
  const Tensor y = put(*be, random.values(rows * kHidden), {rows, kHidden});
  const Tensor weight = put(*be, random.values(kHidden), {1, kHidden});
  const Tensor out = be->alloc(DType::kF32, {rows, kHidden});
  for (auto _ : state) be->add_rms_norm(out, x, y, weight, 0.5f, weight, 1e-6f);
  report(state, static_cast<double>(rows * kHidden * 4 * 4), 0);
}

void geglu(benchmark::State& state) {
  const auto be = make_cpu(kBenchThreads);
  const int64_t rows = state.range(0);
  Random random(3);
  const Tensor x = put(*be, random.values(rows * 2 * kInner), {rows, 2 * kInner});
  const Tensor out = be->alloc(DType::kF32, {rows, kInner});
  for (auto _ : state) be->geglu(out, x);
  report(state, static_cast<double>(rows * kInner * 4 * 3), 0);
}

void qk_norm_rope_cache(benchmark::State& state) {
  const auto be = make_cpu(kBenchThreads);
  const int64_t rows = state.range(0);
  Random random(4);
  const Tensor qkv = put(*be, random.values(rows * 64 * 256), {rows, 64 * 256});
  const Tensor q = qkv.columns(0, 32 * 256).split(32, 256), k = qkv.columns(32 * 256, 16 * 256).split(16, 256),
               v = qkv.columns(48 * 256, 16 * 256).split(16, 256);
  const Tensor weight = put(*be, random.values(256), {1, 256});
  const Rope rope{put(*be, random.values(128, 0.1f, 1), {1, 128}), 256};
  const KvCache kv = be->kv_alloc({rows, 1, 16, 256, 0});
  std::vector<int32_t> pos;
  std::vector<Row> host;
  for (int32_t i = 0; i < rows; ++i) pos.push_back(i), host.push_back({0, i, 0, i});
  const Tensor positions = put_ints(*be, pos, {rows, 1});
  for (auto _ : state) {
    be->qk_norm_rope_cache(q, q, k, v, Tensor(), {weight, weight, 1e-6f}, positions, rope, kv, {Tensor(), host});
  }
  report(state, static_cast<double>(rows * 64 * 256 * 4 * 2), 0);
}

void softcap(benchmark::State& state) {
  const auto be = make_cpu(kBenchThreads);
  const Tensor x = put(*be, Random(5).values(state.range(0) * 262144, -30, 30), {state.range(0), 262144});
  for (auto _ : state) be->softcap(x, 30);
  report(state, static_cast<double>(state.range(0) * 262144 * 4 * 2), 0);
}

void empty_loop(benchmark::State& state) {
  ThreadPool pool(kBenchThreads);
  for (auto _ : state) pool.run([](int) {});
}

BENCHMARK(rms_norm)->Arg(1)->Arg(512)->UseRealTime()->MinTime(0.05);
BENCHMARK(add_rms_norm)->Arg(1)->Arg(512)->UseRealTime()->MinTime(0.05);
BENCHMARK(geglu)->Arg(1)->Arg(512)->UseRealTime()->MinTime(0.05);
BENCHMARK(qk_norm_rope_cache)->Arg(1)->Arg(512)->UseRealTime()->MinTime(0.05);
BENCHMARK(softcap)->Arg(1)->Arg(16)->UseRealTime()->MinTime(0.05);
BENCHMARK(empty_loop)->UseRealTime()->MinTime(0.05);

}  // namespace
}  // namespace gemma4
