// The time of attention at 31B's shapes on the GPU: bytes per second for decode, FLOP per second for prefill (counting
// only the pairs that the mask admits). Names that end with /mma are of flash_prefill_mma(), the kernel of devices
// without wgmma; the others are of what attention() chooses.
#include <benchmark/benchmark.h>

#include <cmath>
#include <memory>
#include <vector>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/megakernel/recording_backend.h"
#include "backend/cuda/runtime/bench_gpu.h"
#include "backend/cuda/runtime/error.h"

namespace gemma4 {
namespace {

struct Shape {
  int heads, kv_heads, dim, rotated;
};
constexpr Shape kSliding = {32, 16, 256, 0}, kFull = {32, 4, 512, 64}, kVision = {16, 16, 72, 0};

// A KV cache of `length` keys of noise, and what the queries need beside it.
struct Inputs {
  Inputs(Backend& backend, Shape s, int rows, int length, bool whole);
  ~Inputs() {
    for (const Tensor& t : {kv.k, kv.v, norm, table, q}) {
      if (t) backend.release(t);
    }
  }

  Backend& backend;
  KvCache kv;
  Tensor norm, table, q;
};

Inputs::Inputs(Backend& b, Shape s, int rows, int length, bool whole) : backend(b) {
  const int page = whole ? 1 : 64, pages = (length + page - 1) / page;
  kv = b.kv_alloc({int64_t{pages} * page, page, s.kv_heads, s.dim, s.rotated});
  const std::vector<float> ones(static_cast<size_t>(s.dim), 1.0f);
  kv.k_norm = norm = b.alloc(DType::kF32, {s.dim});
  b.write(norm, ones.data());
  std::vector<uint16_t> noise(static_cast<size_t>(std::max(kv.v.size(), int64_t{rows} * s.heads * s.dim)));
  uint32_t seed = 1;
  for (auto& x : noise) {  // float16 of about +-0.01 .. 0.03
    seed = seed * 1664525u + 1013904223u;
    x = static_cast<uint16_t>(0x2000u | (seed >> 16 & 0x87ffu));
  }
  b.write(kv.v, noise.data());
  if (kv.k) b.write(kv.k, noise.data());
  q = b.alloc(b.attention_type(), {rows, s.heads, s.dim});
  b.write(q, noise.data());
  if (whole) return;
  std::vector<int32_t> order(static_cast<size_t>(pages));
  for (int i = 0; i < pages; ++i) order[static_cast<size_t>(i)] = i;
  kv.pages = table = b.alloc(DType::kI32, {1, pages});
  b.write(table, order.data());
}

// Launches flash_prefill_mma() on a stream of its own and waits for it.
class MmaCalls {
 public:
  MmaCalls(const Inputs& in, Tensor out, Tensor rows)
      : kv_(cuda::kv_cache_view(in.kv)),
        call_{out.data,
              in.q.data,
              static_cast<const int32_t*>(rows.data),
              out.stride,
              in.q.stride,
              static_cast<int>(in.q.rows()),
              static_cast<int>(in.q.shape[1])} {
    CHECK(cuda::flash_prefill_mma_fits(call_, kv_));
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~MmaCalls() { cudaStreamDestroy(stream_); }
  MmaCalls(const MmaCalls&) = delete;
  MmaCalls& operator=(const MmaCalls&) = delete;

  void run(int calls) {
    for (int i = 0; i < calls; ++i) cuda::flash_prefill_mma(stream_, call_, kv_);
    CUDA_CHECK(cudaStreamSynchronize(stream_));
  }

 private:
  cuda::KvCacheView kv_;
  cuda::AttentionCall call_;
  cudaStream_t stream_ = nullptr;
};

// `rows` queries at the end of `length` keys. Each sees `window` keys back, or all keys if `whole`.
void attention(benchmark::State& state, Shape s, int rows, int length, int window, bool whole, bool mma) {
  if (!gpu()) return state.SkipWithError("NOT MEASURED: there is no GPU");
  Backend& b = *gpu();
  constexpr int kCalls = 16;
  const Inputs in(b, s, rows, length, whole);
  std::vector<Row> list;
  double pairs = 0;
  for (int i = 0; i < rows; ++i) {
    const int pos = whole ? i : length - rows + i, first = whole ? 0 : std::max(0, pos - window + 1);
    list.push_back({0, pos, first, whole ? length - 1 : pos});
    pairs += list.back().last - first + 1;
  }
  const Tensor device = b.alloc(DType::kI32, {rows, 4}), out = b.alloc(DType::kBF16, {rows, s.heads, s.dim});
  b.write(device, list.data());
  static uint64_t key = 1;
  ++key;
  const auto issue = [&] {
    for (int i = 0; i < kCalls; ++i) b.attention(out, in.q, in.kv, {device, {list.data(), list.size()}});
  };
  std::unique_ptr<MmaCalls> mma_calls;
  if (mma) mma_calls = std::make_unique<MmaCalls>(in, out, device);
  const auto run = [&] {
    if (mma) return mma_calls->run(kCalls);
    b.replay(key, issue);
    b.sync();
  };
  b.sync();
  for (int i = 0; i < 3; ++i) run();
  for (auto _ : state) run();
  const double calls = static_cast<double>(state.iterations()) * kCalls;
  state.counters["us"] = benchmark::Counter(calls / 1e6, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  const double row_bytes = 2.0 * s.kv_heads * (s.rotated ? s.dim + 2 * s.rotated : 2 * s.dim);
  if (rows == 1) {
    state.counters["GB/s"] = benchmark::Counter(calls * pairs * row_bytes / 1e9, benchmark::Counter::kIsRate);
  } else {
    state.counters["TFLOP/s"] =
        benchmark::Counter(calls * pairs * s.heads * 4.0 * s.dim / 1e12, benchmark::Counter::kIsRate);
  }
  b.release(device);
  b.release(out);
}

void register_all() {
  const auto add = [](const std::string& name, Shape s, int rows, int length, int window, bool whole = false) {
    for (const bool mma : {false, true}) {
      if (mma && rows == 1) continue;
      benchmark::RegisterBenchmark((name + (mma ? "/mma" : "")).c_str(), attention, s, rows, length, window, whole, mma)
          ->MinTime(0.1)
          ->UseRealTime();
    }
  };
  constexpr int kAll = 1 << 20;
  for (const int length : {64, 1024, 4096}) add("decode/sliding/" + std::to_string(length), kSliding, 1, length, 1024);
  for (const int length : {64, 2048, 16384, 65536, 131072}) {
    add("decode/full/" + std::to_string(length), kFull, 1, length, kAll);
  }
  for (const int length : {2048, 32768}) {
    add("prefill/sliding/2048 of " + std::to_string(length), kSliding, 2048, length, 1024);
    add("prefill/full/2048 of " + std::to_string(length), kFull, 2048, length, kAll);
  }
  for (const int patches : {2520, 10080})
    add("vision/" + std::to_string(patches), kVision, patches, patches, kAll, true);
}

const bool kRegistered = (register_all(), true);

}  // namespace
}  // namespace gemma4
