#include "backend/cuda/linear_trial.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "backend/cuda/choose.h"
#include "backend/cuda/error.h"
#include "base/bf16.h"

namespace gemma4::cuda {
namespace {

struct Buffer {
  void* data = nullptr;
  explicit Buffer(int64_t bytes) { CUDA_CHECK(cudaMalloc(&data, bytes)); }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

std::vector<uint16_t> random_activations(int64_t count) {
  std::vector<uint16_t> values(count);
  uint32_t state = 12345;
  for (uint16_t& value : values) {
    state = state * 1664525u + 1013904223u;
    value = float_to_bf16(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f);
  }
  return values;
}

// Relative difference of got BF16 and want F32 or BF16.
double difference(const std::vector<uint16_t>& got, const std::vector<uint8_t>& want, bool want_f32) {
  const float* wide = reinterpret_cast<const float*>(want.data());
  const uint16_t* narrow = reinterpret_cast<const uint16_t*>(want.data());
  double error = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double w = want_f32 ? wide[i] : bf16_to_float(narrow[i]);
    const double d = bf16_to_float(got[i]) - w;
    error += d * d, norm += w * w;
  }
  if (!std::isfinite(error)) return 1e9;  // NaN: wrong, or never written
  return error == 0 ? 0 : std::sqrt(error / std::max(norm, 1e-30));
}

// Waits. A kernel that hangs cannot be stopped from here, so after a while this says how to do without it.
void wait_and_tell(cudaStream_t stream) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  bool told = false;
  cudaError_t state;
  while ((state = cudaStreamQuery(stream)) == cudaErrorNotReady) {
    std::this_thread::sleep_for(std::chrono::microseconds(20));
    if (told || Clock::now() - start < std::chrono::seconds(20)) continue;
    told = true;
    std::fprintf(
        stderr,
        "warning: the trial of the wgmma kernel has not ended after 20 s; should it never end, kill this process "
        "and set GEMMA4_CUDA_PROMPTS=library\n");
  }
  CUDA_CHECK(state);
}

double one_error(const DeviceMatrix& w, int64_t n, bool geglu, const DecodeWorkspace& decode,
                 const MixedWorkspace& mixed, cudaStream_t stream) {
  const int64_t outs = geglu ? w.rows / 2 : w.rows;
  const DType type = geglu ? DType::kBF16 : DType::kF32;
  const int64_t want_bytes = n * outs * static_cast<int64_t>(dtype_size(type));
  const std::vector<uint16_t> values = random_activations(n * w.cols);
  const Buffer x(n * w.cols * 2), got(n * outs * 2), want(want_bytes);
  CUDA_CHECK(cudaMemcpyAsync(x.data, values.data(), values.size() * 2, cudaMemcpyHostToDevice, stream));
  CUDA_CHECK(cudaMemsetAsync(got.data, 0xff, n * outs * 2, stream));  // NaN where nothing is written
  const Tensor from(x.data, DType::kBF16, {n, w.cols});
  linear_mixed(Tensor(got.data, DType::kBF16, {n, outs}), from, w, geglu, mixed, stream);
  for (int64_t row = 0; row < n; row += kDecodeRows) {
    const int64_t count = std::min(kDecodeRows, n - row);
    linear_decode(Tensor(want.data, type, {n, outs}).slice(row, count), from.slice(row, count), w, geglu, decode,
                  stream);
  }
  wait_and_tell(stream);  // before the copies: those to plain memory wait by themselves
  std::vector<uint16_t> host_got(n * outs);
  std::vector<uint8_t> host_want(want_bytes);
  CUDA_CHECK(cudaMemcpyAsync(host_got.data(), got.data, n * outs * 2, cudaMemcpyDeviceToHost, stream));
  CUDA_CHECK(cudaMemcpyAsync(host_want.data(), want.data, want_bytes, cudaMemcpyDeviceToHost, stream));
  CUDA_CHECK(cudaStreamSynchronize(stream));
  return difference(host_got, host_want, !geglu);
}

}  // namespace

double mixed_error(const DeviceMatrix& w, const DecodeWorkspace& decode, const MixedWorkspace& mixed,
                   cudaStream_t stream) {
  double worst = 0;
  for (const int64_t n : {40, 130}) {  // one tile of 64 rows of x; two of 128
    worst = std::max(worst, one_error(w, n, false, decode, mixed, stream));
    if (w.paired) worst = std::max(worst, one_error(w, n, true, decode, mixed, stream));
  }
  return worst;
}

}  // namespace gemma4::cuda
