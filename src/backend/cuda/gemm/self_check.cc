#include "backend/cuda/gemm/self_check.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "backend/cuda/gemm/select_kernel.h"
#include "backend/cuda/runtime/error.h"
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

// A tensor of BF16 or F32 on the host.
struct Values {
  DType type;
  std::vector<uint8_t> bytes;
  double at(size_t i) const {
    if (type == DType::kF32) return reinterpret_cast<const float*>(bytes.data())[i];
    return bf16_to_float(reinterpret_cast<const uint16_t*>(bytes.data())[i]);
  }
};

// Relative difference of `count` values.
double difference(const Values& got, const Values& want, size_t count) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < count; ++i) {
    const double w = want.at(i), d = got.at(i) - w;
    error += d * d, norm += w * w;
  }
  if (!std::isfinite(error)) return 1e9;  // NaN: wrong or never written
  return error == 0 ? 0 : std::sqrt(error / std::max(norm, 1e-30));
}

// Waits. A kernel that hangs cannot be stopped from here, so after 20 s a warning says how to do without it.
void wait_with_warning(const char* name, cudaStream_t stream) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  bool warned = false;
  cudaError_t state;
  while ((state = cudaStreamQuery(stream)) == cudaErrorNotReady) {
    std::this_thread::sleep_for(std::chrono::microseconds(20));
    if (warned || Clock::now() - start < std::chrono::seconds(20)) continue;
    warned = true;
    std::fprintf(stderr,
                 "warning: the trial of %s has not ended after 20 s; should it never end, kill this process and set "
                 "GEMMA4_CUDA_PROMPTS=library\n",
                 name);
  }
  CUDA_CHECK(state);
}

struct Trial {
  Kernel kernel;
  const char* name;
  const DeviceMatrix& w;
  LinearWorkspace& workspace;
  cudaStream_t stream;
  double error(int64_t n, bool geglu, DType type) const;
};

// The error for n rows; `type`: the output type of the kernel.
double Trial::error(int64_t n, bool geglu, DType type) const {
  const int64_t outs = geglu ? w.rows / 2 : w.rows;
  const auto bytes = [&](DType t) { return n * outs * static_cast<int64_t>(dtype_size(t)); };
  const DType exact = geglu ? DType::kBF16 : DType::kF32;
  const std::vector<uint16_t> values = random_activations(n * w.cols);
  const Buffer x(n * w.cols * 2), got(bytes(type)), want(bytes(exact));
  CUDA_CHECK(cudaMemcpyAsync(x.data, values.data(), values.size() * 2, cudaMemcpyHostToDevice, stream));
  CUDA_CHECK(cudaMemsetAsync(got.data, 0xff, bytes(type), stream));  // NaN where nothing is written
  const Tensor from(x.data, DType::kBF16, {n, w.cols});
  run_kernel(kernel, {Tensor(got.data, type, {n, outs}), from, w, geglu}, workspace, stream);
  for (int64_t row = 0; row < n; row += kGemvRowsMax) {
    const int64_t count = std::min(kGemvRowsMax, n - row);
    const Tensor to = Tensor(want.data, exact, {n, outs}).slice(row, count);
    gemv_bf16({to, from.slice(row, count), w, geglu}, workspace.gemv, stream);
  }
  wait_with_warning(name, stream);  // before the copies: copies to pageable memory wait without a warning
  Values host_got{type, std::vector<uint8_t>(bytes(type))}, host_want{exact, std::vector<uint8_t>(bytes(exact))};
  CUDA_CHECK(cudaMemcpyAsync(host_got.bytes.data(), got.data, bytes(type), cudaMemcpyDeviceToHost, stream));
  CUDA_CHECK(cudaMemcpyAsync(host_want.bytes.data(), want.data, bytes(exact), cudaMemcpyDeviceToHost, stream));
  CUDA_CHECK(cudaStreamSynchronize(stream));
  return difference(host_got, host_want, static_cast<size_t>(n * outs));
}

}  // namespace

double gemm_error(Kernel kernel, const char* name, const DeviceMatrix& w, LinearWorkspace& workspace,
                  cudaStream_t stream) {
  const Trial trial{kernel, name, w, workspace, stream};
  double worst = 0;
  for (const int64_t n : {40, 130}) {  // one output tile of 64 rows of x; two of 128
    for (const DType type : {DType::kBF16, DType::kF32}) worst = std::max(worst, trial.error(n, false, type));
    if (w.paired) worst = std::max(worst, trial.error(n, true, DType::kBF16));
  }
  return worst;
}

}  // namespace gemma4::cuda
