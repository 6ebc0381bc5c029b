// cuda_linear_bench: checks the linear layers of the CUDA backend against double precision on random weights, then
// times them at Gemma 4 31B's shapes. Arguments, none for all: the checks "few" (small shapes), "check" (all shapes),
// "variants" (each GEMV kernel wherever it fits) and "gemm" (gemm_mma() on every device); the timings "decode", "chain"
// and "prefill". Decode and chain time one GEMV kernel after the other, prefill one GEMM kernel after the other. Exits
// 1 when a check fails. GB/s count the bytes of the device layout. The copy bandwidth and the bf16 GEMM of cuBLASLt are
// measured first.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "backend/cuda/gemm/cublaslt.h"
#include "backend/cuda/gemm/linear.h"
#include "backend/cuda/gemm/linear_check_testing.h"
#include "backend/cuda/gemm/linear_data_testing.h"
#include "backend/cuda/gemm/select_kernel.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

struct NamedVariant {
  GemvVariant variant;
  const char* name;
  GemmVariant gemm = GemmVariant::kBest;
};
constexpr NamedVariant kVariants[] = {
    {GemvVariant::kBest, "best"}, {GemvVariant::kBF16, "bf16"}, {GemvVariant::kInt8, "int8"}};

constexpr NamedVariant kPromptVariants[] = {{GemvVariant::kBest, "best"},
                                            {GemvVariant::kBest, "mma", GemmVariant::kMma},
                                            {GemvVariant::kBest, "library", GemmVariant::kLibrary}};

// Median microseconds of one call of issue(i), replayed from a graph of `count` calls.
template <typename Issue>
double time_us(cudaStream_t stream, int count, int repeats, Issue&& issue) {
  issue(0);  // cuBLASLt plans and shared memory limits are set outside of the capture
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA_CHECK(cudaStreamSynchronize(stream));
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) issue(i);
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  CUDA_CHECK(cudaGraphLaunch(exec, stream));
  for (int i = 0; i < repeats; ++i) {
    CUDA_CHECK(cudaEventRecord(begin, stream));
    CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    float ms;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(ms);
  }
  cudaEventDestroy(begin), cudaEventDestroy(end), cudaGraphExecDestroy(exec), cudaGraphDestroy(graph);
  std::ranges::sort(times);
  return times[times.size() / 2] * 1000.0 / count;
}

struct Shape {
  const char* name;
  int64_t rows, cols;
  bool geglu;
};
constexpr Shape kShapes[] = {
    {"qkv sliding", 16384, 5376, false}, {"qkv full", 18432, 5376, false}, {"o sliding", 5376, 8192, false},
    {"o full", 5376, 16384, false},      {"gate_up", 43008, 5376, true},   {"down", 5376, 21504, false},
    {"head", 262144, 5376, false},
};

__global__ void copy_kernel(const uint4* from, uint4* to, int64_t count) {  // four loads in flight
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i + 3 * step < count; i += 4 * step) {
    const uint4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
    to[i] = a, to[i + step] = b, to[i + 2 * step] = c, to[i + 3 * step] = d;
  }
}

struct Bench {
  Linear& linear;
  cudaStream_t stream;
  double copy_gbs = 0, gemm_tflops = 0;

  void peaks() {
    const int64_t bytes = 2ll << 30;
    {
      const DeviceBuffer a(bytes), b(bytes);
      CUDA_CHECK(cudaMemset(a.data, 1, bytes));
      const double us = time_us(stream, 2, 7, [&](int) {
        copy_kernel<<<1 << 15, 512, 0, stream>>>(static_cast<uint4*>(a.data), static_cast<uint4*>(b.data), bytes / 16);
        CUDA_CHECK(cudaGetLastError());
      });
      const double memcpy_us = time_us(stream, 2, 7, [&](int) {
        CUDA_CHECK(cudaMemcpyAsync(b.data, a.data, bytes, cudaMemcpyDeviceToDevice, stream));
      });
      copy_gbs = 2.0 * bytes / std::min(us, memcpy_us) / 1e3;
      std::printf("copy kernel %.0f GB/s, cudaMemcpy %.0f GB/s\n", 2.0 * bytes / us / 1e3,
                  2.0 * bytes / memcpy_us / 1e3);
    }
    CublasLt cublaslt;
    const int64_t n = 2048, cols = 5376, rows = 21504;
    const DeviceBuffer w(rows * cols * 2), out(n * rows * 2), workspace(CublasLt::kWorkspaceBytes);
    fill(w.data, rows * cols);
    const Inputs x(n, cols, 1);
    const double us = time_us(stream, 8, 5, [&](int) {
      cublaslt.gemm(Tensor(out.data, DType::kBF16, {n, rows}), x.tensor, w.data, rows, cols, workspace.data, stream);
    });
    gemm_tflops = 2.0 * n * rows * cols / us / 1e6;
    std::printf("copy bandwidth %.0f GB/s; cuBLASLt bf16 2048 x 5376 x 21504: %.0f us, %.0f TFLOP/s\n", copy_gbs, us,
                gemm_tflops);
  }

  void fill(void* device, int64_t count) {
    std::vector<uint16_t> values(count);
    pool().parallel_for(count, 1 << 16, [&](int64_t begin, int64_t end) {
      uint64_t state = begin * 77 + 13;
      for (int64_t i = begin; i < end; ++i) {
        values[i] = float_to_bf16((static_cast<float>(random_bits(state) >> 40) / 16777216.0f - 0.5f) * 0.1f);
      }
    });
    CUDA_CHECK(cudaMemcpy(device, values.data(), count * 2, cudaMemcpyHostToDevice));
  }

  double time_one(const Shape& shape, const DeviceMatrix& first, const std::vector<void*>& copies, const Inputs& x) {
    const int64_t n = x.tensor.rows(), outs = shape.geglu ? shape.rows / 2 : shape.rows;
    const DeviceBuffer out(n * outs * 2), scratch(n * shape.rows * 2);
    return time_us(stream, n <= 64 ? 24 : 4, 5, [&](int i) {
      DeviceMatrix w = first;
      w.data = copies[i % copies.size()];
      const Tensor to(out.data, DType::kBF16, {n, outs});
      if (shape.geglu) {
        linear.linear_geglu(to, x.tensor, w, Tensor(scratch.data, DType::kBF16, {n, shape.rows}), stream);
      } else {
        linear.linear(to, x.tensor, w, stream);
      }
    });
  }

  void report(const FormatCase& format_case, const Shape& shape, int64_t n, const char* variant, double us,
              int64_t bytes) {
    const double gbs = bytes / us / 1e3, tflops = 2.0 * n * shape.rows * shape.cols / us / 1e6;
    std::printf("%-12s %-12s n %5ld %-8s %9.1f us %6.0f GB/s %5.1f %% of copy %7.1f TFLOP/s %5.1f %% of GEMM\n",
                format_case.name, shape.name, n, variant, us, gbs, 100 * gbs / copy_gbs, tflops,
                100 * tflops / gemm_tflops);
    std::fflush(stdout);
  }

  void time(const FormatCase& format_case, const Shape& shape, const std::vector<int64_t>& batches,
            std::span<const NamedVariant> variants = std::span(kVariants).first(1)) {
    std::vector<Weight> weights;
    const int64_t heights = shape.geglu ? 2 : 1;
    for (int64_t i = 0; i < heights; ++i)
      weights.push_back(make_weight(format_case, shape.rows / heights, shape.cols, 9 + i));
    std::vector<Matrix> views;
    for (const Weight& weight : weights) views.push_back(weight.matrix);
    std::vector<void*> copies;
    const DeviceMatrix first = linear.upload(
        views,
        [&](int64_t bytes) {
          void* pointer;
          CUDA_CHECK(cudaMalloc(&pointer, bytes));
          copies.push_back(pointer);
          return pointer;
        },
        stream);
    CUDA_CHECK(cudaStreamSynchronize(stream));
    while (static_cast<int64_t>(copies.size()) * first.bytes < (400ll << 20)) {  // more than fits L2
      void* pointer;
      CUDA_CHECK(cudaMalloc(&pointer, first.bytes));
      CUDA_CHECK(cudaMemcpy(pointer, first.data, first.bytes, cudaMemcpyDeviceToDevice));
      copies.push_back(pointer);
    }
    for (const int64_t n : batches) {
      const Inputs x(n, shape.cols, 21);
      for (const NamedVariant& named : variants) {
        linear.force_gemv(named.variant);
        linear.force_gemm(named.gemm);
        report(format_case, shape, n, named.name, time_one(shape, first, copies, x), first.bytes);
      }
      linear.force_gemv(GemvVariant::kBest);
      linear.force_gemm(GemmVariant::kBest);
    }
    for (void* pointer : copies) cudaFree(pointer);
  }
};

// Takes the place of the small kernels between linear layers: a block for each row normalises the last 5376 outputs and
// writes the next `to_cols` inputs.
__global__ void __launch_bounds__(1024)
    normalize_rows_kernel(const uint4* from, int64_t from_stride, uint4* to, int to_cols) {
  grid_release();
  grid_wait();
  __shared__ float sums[32];
  uint4 v = {};
  if (threadIdx.x < 672) v = from[blockIdx.x * from_stride / 8 + threadIdx.x];
  float sum = 0;
  for (const uint32_t w : {v.x, v.y, v.z, v.w}) {
    const float low = __uint_as_float(w << 16), high = __uint_as_float(w & 0xffff0000u);
    sum += low * low + high * high;
  }
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = sums[threadIdx.x % 32];
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  const __nv_bfloat162 scale = __float2bfloat162_rn(rsqrtf(sum / 5376 + 1e-6f));
  for (uint32_t* w : {&v.x, &v.y, &v.z, &v.w}) {
    const __nv_bfloat162 pair = __hmul2(*reinterpret_cast<__nv_bfloat162*>(w), scale);
    *w = *reinterpret_cast<const uint32_t*>(&pair);
  }
  if (threadIdx.x >= 672) return;
  for (int i = threadIdx.x; i < to_cols / 8; i += 672) to[blockIdx.x * static_cast<int64_t>(to_cols) / 8 + i] = v;
}

// A decode step without attention: 60 layers of qkv, o, gate_up and down with small kernels between, then the head.
class Chain {
 public:
  Chain(Linear& linear, cudaStream_t stream) : linear_(linear), stream_(stream) {
    for (const Shape& shape : kShapes) layers_.push_back(make_layer(shape));
  }
  ~Chain() {
    for (Layer& layer : layers_) {
      for (void* pointer : layer.copies) cudaFree(pointer);
    }
  }

  void time(int64_t n, const NamedVariant& named, double copy_gbs) {
    linear_.force_gemv(named.variant);
    const DeviceBuffer a(n * 22000 * 2), b(n * 262144 * 2);
    CUDA_CHECK(cudaMemset(a.data, 0x3c, n * 22000 * 2));
    int64_t bytes = 0;
    const double us = time_us(stream_, 1, 7, [&](int) { bytes = issue(n, a.data, b.data); });
    std::printf("chain n %ld %-8s: %8.1f us a step, %6.0f GB/s, %5.1f %% of copy, %.1f steps/s\n", n, named.name, us,
                bytes / us / 1e3, 100 * bytes / us / 1e3 / copy_gbs, 1e6 / us);
    linear_.force_gemv(GemvVariant::kBest);
  }

 private:
  struct Layer {
    Shape shape;
    DeviceMatrix w;
    std::vector<void*> copies;
  };

  Layer make_layer(const Shape& shape) {
    const int64_t heights = shape.geglu ? 2 : 1;
    std::vector<Weight> weights;
    for (int64_t i = 0; i < heights; ++i)
      weights.push_back(make_weight(kFormatCases[0], shape.rows / heights, shape.cols, 9 + i));
    std::vector<Matrix> views;
    for (const Weight& weight : weights) views.push_back(weight.matrix);
    Layer layer{shape, {}, {}};
    const auto take = [&](int64_t size) {
      void* pointer;
      CUDA_CHECK(cudaMalloc(&pointer, size));
      layer.copies.push_back(pointer);
      return pointer;
    };
    layer.w = linear_.upload(views, take, stream_);
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    const int copies = shape.rows > 100000 ? 1 : 6;
    for (int i = 1; i < copies; ++i) {
      take(layer.w.bytes);
      CUDA_CHECK(cudaMemcpy(layer.copies.back(), layer.w.data, layer.w.bytes, cudaMemcpyDeviceToDevice));
    }
    return layer;
  }

  int64_t run_layer(const Layer& layer, int copy, int64_t n, void* from_data, void* to_data) {
    DeviceMatrix w = layer.w;
    w.data = layer.copies[copy % layer.copies.size()];
    const int64_t outs = layer.shape.geglu ? layer.shape.rows / 2 : layer.shape.rows;
    const Tensor to(to_data, DType::kBF16, {n, outs}), from(from_data, DType::kBF16, {n, layer.shape.cols});
    if (layer.shape.geglu) {
      linear_.linear_geglu(to, from, w, Tensor(), stream_);
    } else {
      linear_.linear(to, from, w, stream_);
    }
    return outs;
  }

  int64_t issue(int64_t n, void* a, void* b) {  // returns the bytes of weights that it reads
    int64_t bytes = 0;
    for (int i_layer = 0; i_layer < 60; ++i_layer) {
      const bool full = i_layer % 6 == 5;
      for (const int i : {full ? 1 : 0, full ? 3 : 2, 4, 5}) {
        const int64_t outs = run_layer(layers_[i], i_layer, n, a, b);
        bytes += layers_[i].w.bytes;
        const int64_t next = i < 2 ? layers_[full ? 3 : 2].shape.cols : i == 4 ? 21504 : 5376;
        launch(stream_, dim3(static_cast<unsigned>(n)), dim3(1024), 0, normalize_rows_kernel,
               static_cast<const uint4*>(b), outs, static_cast<uint4*>(a), static_cast<int>(next));
      }
    }
    run_layer(layers_[6], 0, n, a, b);
    return bytes + layers_[6].w.bytes;
  }

  Linear& linear_;
  cudaStream_t stream_;
  std::vector<Layer> layers_;
};

int run(const std::vector<std::string>& modes) {
  const auto wanted = [&](const char* mode) { return modes.empty() || std::ranges::find(modes, mode) != modes.end(); };
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, %d SMs\n", properties.name, properties.multiProcessorCount);
  Linear linear(0);
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Checker checker{linear, stream};
  if (wanted("few")) checker.few();
  if (wanted("check")) checker.all();
  if (wanted("variants")) {
    for (const NamedVariant& named : std::span(kVariants).subspan(1)) checker.variant(named.variant, named.name);
  }
  if (wanted("gemm")) checker.gemm(GemmVariant::kMma, "mma");
  if (checker.done > 0) std::printf("checks: %d of %d passed\n", checker.done - checker.failed, checker.done);
  Bench bench{linear, stream};
  if (wanted("decode") || wanted("prefill") || wanted("chain")) bench.peaks();
  if (wanted("decode")) {
    for (const Shape& shape : kShapes) bench.time(kFormatCases[0], shape, {1, 4, 8}, kVariants);
    for (const int i : {1, 7}) bench.time(kFormatCases[i], kShapes[5], {1}, kVariants);
    for (const FormatCase& format_case : kFormatCases) bench.time(format_case, kShapes[5], {1, 16});
  }
  if (wanted("chain")) {
    Chain chain(linear, stream);
    for (int round = 0; round < 2; ++round) {  // variants in turns, so that a GPU that changes its clock is noticed
      for (const int64_t n : {1, 4, 8}) {
        for (const NamedVariant& named : kVariants) chain.time(n, named, bench.copy_gbs);
      }
    }
  }
  if (wanted("prefill")) {
    for (const Shape& shape : std::span(kShapes).first(6))
      bench.time(kFormatCases[0], shape, {32, 64, 256, 512, 2048}, kPromptVariants);
    for (const FormatCase& format_case : kFormatCases) bench.time(format_case, kShapes[5], {2048}, kPromptVariants);
  }
  return checker.failed > 0 ? 1 : 0;
}

}  // namespace
}  // namespace gemma4::cuda

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a hang shows where
  try {
    return gemma4::cuda::run(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const gemma4::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 3;
  }
}
