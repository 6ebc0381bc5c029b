// cuda_linear_bench: checks the linear layers of the CUDA backend against double precision on random weights, then
// times them at Gemma 4 31B's shapes. Arguments: any of "few" (checks), "check", "decode", "chain", "prefill"; none
// means all. Exits 1 when a check fails. GB/s count the bytes of the device layout; the copy bandwidth and the
// library's bf16 product are measured first.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/choose.h"
#include "backend/cuda/error.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/library.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/linear_decode.h"
#include "base/bf16.h"
#include "base/threads.h"
#include "quant/pack.h"

namespace gemma4::cuda {
namespace {

uint64_t random_bits(uint64_t& state) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state;
}

// A host weight with random codes and plausible scales, and the memory behind it.
struct Weight {
  Matrix matrix;
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scale, zero;
  std::vector<float> scale_f32;
};

struct Kind {
  const char* name;
  Format format;
  int group;
  bool fractional;
  Layout layout;  // expected
};

constexpr Kind kKinds[] = {
    {"int4 g32", Format::kInt4, 32, false, Layout::kInt4G32},
    {"int4 g64", Format::kInt4, 64, false, Layout::kInt4G64},
    {"int4 g128", Format::kInt4, 128, false, Layout::kInt4G64},
    {"int4 g32 hqq", Format::kInt4, 32, true, Layout::kInt4G32Frac},
    {"int4 g64 hqq", Format::kInt4, 64, true, Layout::kInt4G64Frac},
    {"int8 g32", Format::kInt8, 32, false, Layout::kInt8G32},
    {"int8 row", Format::kInt8, 0, false, Layout::kInt8G64},
    {"q4_0", Format::kQ4_0, 0, false, Layout::kQ4_0},
    {"q4_K", Format::kQ4_K, 0, false, Layout::kQ4_K},
    {"q6_K", Format::kQ6_K, 0, false, Layout::kQ6_K},
    {"q8_0", Format::kQ8_0, 0, false, Layout::kQ8_0},
    {"bf16", Format::kBF16, 0, false, Layout::kBF16},
};

void set_half(uint8_t* at, float value) {
  const uint16_t bits = float_to_f16(value);
  std::memcpy(at, &bits, 2);
}

// Random bytes make random codes; the 16-bit scales inside ggml blocks are then set to small positive numbers.
void set_block_scales(Weight& w, uint64_t& state) {
  const FormatInfo& f = info(w.matrix.format);
  const auto small = [&] { return 0.002f + 0.004f * static_cast<float>(random_bits(state) % 1024) / 1024.0f; };
  for (size_t at = 0; at < w.codes.size(); at += f.block_bytes) {
    uint8_t* block = w.codes.data() + at;
    if (w.matrix.format == Format::kQ6_K) {
      set_half(block + 208, small() / 64);
    } else if (w.matrix.format == Format::kQ4_K) {
      set_half(block, small() / 32), set_half(block + 2, small() / 8);
    } else {
      set_half(block, w.matrix.format == Format::kQ8_0 ? small() / 16 : small());
    }
  }
}

Weight make_weight(const Kind& kind, int64_t rows, int64_t cols, uint64_t seed) {
  Weight w;
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  Matrix& m = w.matrix;
  m.format = kind.format, m.rows = rows, m.cols = cols;
  m.group = kind.format == Format::kInt8 && kind.group == 0 ? static_cast<int>(cols) : kind.group;
  const int64_t bytes = row_bytes(m);
  w.codes.resize(rows * bytes + 8);
  for (size_t i = 0; i + 8 <= w.codes.size(); i += 8) {
    const uint64_t bits = random_bits(state);
    std::memcpy(w.codes.data() + i, &bits, 8);
  }
  w.codes.resize(rows * bytes);
  const auto uniform = [&] { return static_cast<float>(random_bits(state) >> 40) / 16777216.0f; };
  if (is_ggml_block(kind.format)) set_block_scales(w, state);
  if (kind.format == Format::kBF16) {
    uint16_t* values = reinterpret_cast<uint16_t*>(w.codes.data());
    for (int64_t i = 0; i < rows * cols; ++i) values[i] = float_to_bf16((uniform() - 0.5f) * 0.1f);
  }
  const DType type = kind.format == Format::kInt8   ? DType::kI8
                     : kind.format == Format::kBF16 ? DType::kBF16
                                                    : DType::kU8;
  m.codes = Tensor(w.codes.data(), type, {rows, kind.format == Format::kBF16 ? cols : bytes});
  if (m.group > 0) {
    const int64_t groups = cols / m.group;
    w.scale.resize(rows * groups), w.zero.resize(rows * groups);
    for (uint16_t& s : w.scale) s = float_to_bf16(0.002f + 0.004f * uniform());
    for (uint16_t& z : w.zero) {
      z = float_to_bf16(kind.fractional ? uniform() * 15 : static_cast<float>(random_bits(state) % 16));
    }
    if (kind.format == Format::kInt4) {
      m.scale = Tensor(w.scale.data(), DType::kBF16, {groups, rows});
      m.zero = Tensor(w.zero.data(), DType::kBF16, {groups, rows});
    } else {
      for (uint16_t& s : w.scale) s = float_to_bf16(bf16_to_float(s) / 16);
      m.scale = Tensor(w.scale.data(), DType::kBF16, {rows, groups});
    }
  }
  return w;
}

struct DeviceBuffer {
  void* data = nullptr;
  explicit DeviceBuffer(int64_t bytes) { CUDA_CHECK(cudaMalloc(&data, std::max<int64_t>(bytes, 16))); }
  ~DeviceBuffer() { cudaFree(data); }
  DeviceBuffer(const DeviceBuffer&) = delete;
};

struct Inputs {
  std::vector<uint16_t> host;
  DeviceBuffer device;
  Tensor tensor;
  Inputs(int64_t n, int64_t cols, uint64_t seed) : host(n * cols), device(n * cols * 2) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    for (uint16_t& value : host) value = float_to_bf16(normal(random));
    CUDA_CHECK(cudaMemcpy(device.data, host.data(), host.size() * 2, cudaMemcpyHostToDevice));
    tensor = Tensor(device.data, DType::kBF16, {n, cols});
  }
};

ThreadPool& pool() {
  static ThreadPool threads;
  return threads;
}

struct Checker {
  Linear& linear;
  cudaStream_t stream;
  int failed = 0, done = 0;

  // Double-precision dot products of the stacked rows `wanted` with every row of x: [wanted, n].
  std::vector<double> reference(const std::vector<Weight>& parts, const std::vector<int64_t>& wanted, const Inputs& x,
                                int64_t n) {
    const int64_t cols = parts[0].matrix.cols;
    std::vector<double> out(wanted.size() * n);
    pool().parallel_for(static_cast<int64_t>(wanted.size()), 1, [&](int64_t begin, int64_t end) {
      std::vector<float> row(cols);
      for (int64_t i = begin; i < end; ++i) {
        int64_t r = wanted[i];
        size_t part = 0;
        while (r >= parts[part].matrix.rows) r -= parts[part++].matrix.rows;
        unpack_row(parts[part].matrix, r, row.data());
        for (int64_t j = 0; j < n; ++j) {
          double sum = 0;
          for (int64_t c = 0; c < cols; ++c) sum += static_cast<double>(row[c]) * bf16_to_float(x.host[j * cols + c]);
          out[i * n + j] = sum;
        }
      }
    });
    return out;
  }

  void check(const Kind& kind, std::vector<int64_t> heights, int64_t cols, int64_t n, bool geglu, DType out_type) {
    std::vector<Weight> parts;
    int64_t rows = 0;
    for (int64_t height : heights) parts.push_back(make_weight(kind, height, cols, 77 + rows)), rows += height;
    std::vector<Matrix> views;
    for (const Weight& part : parts) views.push_back(part.matrix);
    std::vector<void*> taken;
    const DeviceMatrix w = linear.upload(
        views,
        [&](int64_t bytes) {
          void* pointer = nullptr;
          CUDA_CHECK(cudaMalloc(&pointer, bytes));
          taken.push_back(pointer);
          return pointer;
        },
        stream);
    const Inputs x(n, cols, 5 + n);
    const int64_t outs = geglu ? rows / 2 : rows, item = out_type == DType::kF32 ? 4 : 2;
    const DeviceBuffer out(n * outs * item), scratch(geglu ? n * rows * 2 : 16);
    std::vector<uint8_t> got(n * outs * item);
    double worst = 0;
    int64_t unwritten = 0;
    for (int repeat = 0; repeat < 2; ++repeat) {
      CUDA_CHECK(cudaMemset(out.data, 0xff, n * outs * item));
      const Tensor to(out.data, out_type, {n, outs});
      if (geglu) {
        linear.linear_geglu(to, x.tensor, w, Tensor(scratch.data, DType::kBF16, {n, rows}), stream);
      } else {
        linear.linear(to, x.tensor, w, stream);
      }
      CUDA_CHECK(cudaMemcpyAsync(got.data(), out.data, got.size(), cudaMemcpyDeviceToHost, stream));
      CUDA_CHECK(cudaStreamSynchronize(stream));
      worst = std::max(worst, compare(parts, x, n, rows, geglu, got, item, unwritten));
    }
    for (void* pointer : taken) CUDA_CHECK(cudaFree(pointer));
    const double limit = out_type == DType::kF32 && n <= kDecodeRows && w.layout != Layout::kBF16 ? 1e-4 : 6e-3;
    const bool good = worst < limit && unwritten == 0 && w.layout == (cols % 64 == 0 ? kind.layout : Layout::kBF16);
    ++done;
    if (!good) ++failed;
    std::printf("%-13s %6ld x %5ld n %4ld%s%s -> %-13s error %.2e limit %.0e unwritten %ld %s\n", kind.name, rows, cols,
                n, geglu ? " geglu" : "", item == 4 ? " f32" : "", layout_name(w.layout), worst, limit, unwritten,
                good ? "ok" : "FAILED");
  }

  // |out - reference| / |reference| over some rows; counts outputs that still hold the poison.
  double compare(const std::vector<Weight>& parts, const Inputs& x, int64_t n, int64_t rows, bool geglu,
                 const std::vector<uint8_t>& got, int64_t item, int64_t& unwritten) {
    const int64_t outs = geglu ? rows / 2 : rows;
    const auto value = [&](int64_t j, int64_t i) {
      float f;
      uint16_t h;
      if (item == 4) return std::memcpy(&f, got.data() + (j * outs + i) * 4, 4), f;
      return std::memcpy(&h, got.data() + (j * outs + i) * 2, 2), bf16_to_float(h);
    };
    for (int64_t i = 0; i < n * outs; ++i) unwritten += std::isnan(value(i / outs, i % outs));
    std::vector<int64_t> sample;
    const int64_t budget = std::max<int64_t>(48, 400'000'000 / (parts[0].matrix.cols * n * 4));
    const int64_t step = std::max<int64_t>(1, outs / std::min<int64_t>(outs, std::min<int64_t>(budget, 700)));
    for (int64_t i = 0; i < outs; i += step) sample.push_back(i);
    sample.push_back(outs - 1);
    std::vector<double> first = reference(parts, sample, x, n);
    if (geglu) {
      std::vector<int64_t> second = sample;
      for (int64_t& i : second) i += outs;
      const std::vector<double> up = reference(parts, second, x, n);
      for (size_t i = 0; i < first.size(); ++i) {
        const double g = first[i];
        first[i] = 0.5 * g * (1 + std::tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))) * up[i];
      }
    }
    double error = 0, norm = 0;
    for (size_t i = 0; i < sample.size(); ++i) {
      for (int64_t j = 0; j < n; ++j) {
        const double want = first[i * n + j], difference = value(j, sample[i]) - want;
        error += difference * difference, norm += want * want;
      }
    }
    const double relative = std::sqrt(error / norm);
    return std::isfinite(relative) ? relative : 1e9;
  }

  void embed(const Kind& kind, int64_t rows, int64_t cols) {
    std::vector<Weight> parts;
    parts.push_back(make_weight(kind, rows, cols, 3));
    const DeviceBuffer space(rows * cols * 2 + 256 * cols * 2), ids(5 * 4), out(5 * cols * 4);
    const DeviceMatrix w = linear.upload(
        std::span(&parts[0].matrix, 1), [&](int64_t) { return space.data; }, stream);
    const std::vector<int32_t> host = {0, static_cast<int32_t>(rows - 1), 17, 130, 17};
    CUDA_CHECK(cudaMemcpy(ids.data, host.data(), 20, cudaMemcpyHostToDevice));
    linear.embed(Tensor(out.data, DType::kF32, {5, cols}), w, Tensor(ids.data, DType::kI32, {5}), 73.5f, stream);
    std::vector<float> got(5 * cols), row(cols);
    CUDA_CHECK(cudaMemcpyAsync(got.data(), out.data, got.size() * 4, cudaMemcpyDeviceToHost, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    double worst = 0;
    for (int i = 0; i < 5; ++i) {
      unpack_row(parts[0].matrix, host[i], row.data());
      for (int64_t c = 0; c < cols; ++c) {
        worst = std::max(worst, std::abs(row[c] * 73.5 - got[i * cols + c]) / (std::abs(row[c] * 73.5) + 1e-3));
      }
    }
    ++done;
    if (!(worst < 1e-5)) ++failed;
    std::printf("%-13s embed %ld x %ld error %.2e %s\n", kind.name, rows, cols, worst, worst < 1e-5 ? "ok" : "FAILED");
  }

  void few() {  // the quantised kernels on small shapes: for compute-sanitizer
    check(kKinds[0], {272, 48}, 768, 1, false, DType::kBF16);
    check(kKinds[0], {272, 48}, 768, 13, false, DType::kF32);
    check(kKinds[0], {192, 192}, 1024, 40, true, DType::kBF16);
    check(kKinds[0], {200, 200}, 1024, 130, true, DType::kBF16);
    check(kKinds[5], {272, 48}, 768, 70, false, DType::kBF16);
  }

  void all() {
    for (const Kind& kind : kKinds) {
      for (const int64_t n : {1, 3, 8, 13, 33, 200}) check(kind, {272, 48}, 768, n, false, DType::kF32);
      for (const int64_t n : {17, 64, 200}) check(kind, {272, 48}, 768, n, false, DType::kBF16);
      check(kind, {512, 512}, 5376, 2, true, DType::kBF16);
      check(kind, {192, 192}, 512, 11, true, DType::kBF16);
      check(kind, {192, 192}, 1024, 40, true, DType::kBF16);
      check(kind, {200, 200}, 1024, 130, true, DType::kBF16);
      check(kind, {72}, 2048, 1, false, DType::kBF16);
      embed(kind, 300, 512);
    }
    check(kKinds[0], {5376}, 21504, 1, false, DType::kF32);
    check(kKinds[0], {5376}, 8192, 4, false, DType::kF32);
    check(kKinds[0], {16384, 2048}, 5376, 1, false, DType::kBF16);
    check(kKinds[0], {21504, 21504}, 5376, 1, true, DType::kBF16);
    check(kKinds[0], {5376}, 8192, 300, false, DType::kBF16);
    check(kKinds[0], {21504, 21504}, 5376, 256, true, DType::kBF16);
    check(kKinds[11], {100}, 1152, 50, false, DType::kBF16);
    check(kKinds[11], {1152}, 4304, 64, false, DType::kBF16);
    check(kKinds[11], {37}, 75, 3, false, DType::kF32);
    check(kKinds[0], {40}, 96, 3, false, DType::kF32);
    std::printf("checks: %d of %d passed\n", done - failed, done);
  }
};

// Median microseconds of one call of issue(i), replayed from a graph of `count` calls.
template <typename Issue>
double time_us(cudaStream_t stream, int count, int repeats, Issue&& issue) {
  issue(0);  // plans and limits are set outside of the capture
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
    Library library;
    const int64_t n = 2048, cols = 5376, rows = 21504;
    const DeviceBuffer w(rows * cols * 2), out(n * rows * 2), workspace(Library::kWorkspace);
    fill(w.data, rows * cols);
    const Inputs x(n, cols, 1);
    const double us = time_us(stream, 8, 5, [&](int) {
      library.multiply(Tensor(out.data, DType::kBF16, {n, rows}), x.tensor, w.data, rows, cols, workspace.data, stream);
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

  void time(const Kind& kind, const Shape& shape, const std::vector<int64_t>& batches) {
    std::vector<Weight> parts;
    const int64_t heights = shape.geglu ? 2 : 1;
    for (int64_t i = 0; i < heights; ++i) parts.push_back(make_weight(kind, shape.rows / heights, shape.cols, 9 + i));
    std::vector<Matrix> views;
    for (const Weight& part : parts) views.push_back(part.matrix);
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
    while (static_cast<int64_t>(copies.size()) * first.bytes < (400ll << 20)) {  // more than L2 holds
      void* pointer;
      CUDA_CHECK(cudaMalloc(&pointer, first.bytes));
      CUDA_CHECK(cudaMemcpy(pointer, first.data, first.bytes, cudaMemcpyDeviceToDevice));
      copies.push_back(pointer);
    }
    for (const int64_t n : batches) {
      const Inputs x(n, shape.cols, 21);
      const int64_t outs = shape.geglu ? shape.rows / 2 : shape.rows;
      const DeviceBuffer out(n * outs * 2), scratch(n * shape.rows * 2);
      const int count = n <= 64 ? 24 : 4;
      const double us = time_us(stream, count, 5, [&](int i) {
        DeviceMatrix w = first;
        w.data = copies[i % copies.size()];
        const Tensor to(out.data, DType::kBF16, {n, outs});
        if (shape.geglu) {
          linear.linear_geglu(to, x.tensor, w, Tensor(scratch.data, DType::kBF16, {n, shape.rows}), stream);
        } else {
          linear.linear(to, x.tensor, w, stream);
        }
      });
      const double gbs = first.bytes / us / 1e3, tflops = 2.0 * n * shape.rows * shape.cols / us / 1e6;
      std::printf("%-12s %-12s n %5ld %9.1f us %6.0f GB/s %5.1f %% of copy %7.1f TFLOP/s %5.1f %% of GEMM\n", kind.name,
                  shape.name, n, us, gbs, 100 * gbs / copy_gbs, tflops, 100 * tflops / gemm_tflops);
      std::fflush(stdout);
    }
    for (void* pointer : copies) cudaFree(pointer);
  }
};

// Stands for the small kernels between linear layers: a block for each row normalises 5376 numbers that came and writes
// the `to_cols` that go.
__global__ void __launch_bounds__(1024) between_kernel(const uint4* from, int64_t from_stride, uint4* to, int to_cols) {
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
void time_chain(Bench& bench, Linear& linear, cudaStream_t stream) {
  struct Step {
    Shape shape;
    DeviceMatrix w;
    std::vector<void*> copies;
  };
  std::vector<Step> steps;
  int64_t bytes = 0;
  for (const Shape& shape : kShapes) {
    const int64_t heights = shape.geglu ? 2 : 1;
    std::vector<Weight> parts;
    for (int64_t i = 0; i < heights; ++i)
      parts.push_back(make_weight(kKinds[0], shape.rows / heights, shape.cols, 9 + i));
    std::vector<Matrix> views;
    for (const Weight& part : parts) views.push_back(part.matrix);
    Step step{shape, {}, {}};
    const auto take = [&](int64_t size) {
      void* pointer;
      CUDA_CHECK(cudaMalloc(&pointer, size));
      step.copies.push_back(pointer);
      return pointer;
    };
    step.w = linear.upload(views, take, stream);
    CUDA_CHECK(cudaStreamSynchronize(stream));
    const int copies = shape.rows > 100000 ? 1 : 6;
    for (int i = 1; i < copies; ++i) {
      take(step.w.bytes);
      CUDA_CHECK(cudaMemcpy(step.copies.back(), step.w.data, step.w.bytes, cudaMemcpyDeviceToDevice));
    }
    steps.push_back(step);
  }
  for (const int64_t n : {1, 8}) {
    const DeviceBuffer a(n * 22000 * 2), b(n * 262144 * 2);
    CUDA_CHECK(cudaMemset(a.data, 0x3c, n * 22000 * 2));
    const auto run_step = [&](const Step& step, int copy) {
      DeviceMatrix w = step.w;
      w.data = step.copies[copy % step.copies.size()];
      const int64_t outs = step.shape.geglu ? step.shape.rows / 2 : step.shape.rows;
      const Tensor to(b.data, DType::kBF16, {n, outs}), from(a.data, DType::kBF16, {n, step.shape.cols});
      if (step.shape.geglu) {
        linear.linear_geglu(to, from, w, Tensor(), stream);
      } else {
        linear.linear(to, from, w, stream);
      }
      return outs;
    };
    const auto between = [&](int64_t from, int64_t to) {
      launch(stream, dim3(static_cast<unsigned>(n)), dim3(1024), 0, between_kernel, static_cast<const uint4*>(b.data),
             from, static_cast<uint4*>(a.data), static_cast<int>(to));
    };
    bytes = 0;
    const double us = time_us(stream, 1, 7, [&](int) {
      bytes = 0;
      for (int layer = 0; layer < 60; ++layer) {
        const bool full = layer % 6 == 5;
        for (const int i : {full ? 1 : 0, full ? 3 : 2, 4, 5}) {
          const int64_t outs = run_step(steps[i], layer);
          bytes += steps[i].w.bytes;
          between(outs, i < 2 ? steps[full ? 3 : 2].shape.cols : i == 4 ? 21504 : 5376);
        }
      }
      run_step(steps[6], 0);
      bytes += steps[6].w.bytes;
    });
    std::printf("chain n %ld: %8.1f us a step, %6.0f GB/s, %5.1f %% of copy, %.1f steps/s\n", n, us, bytes / us / 1e3,
                100 * bytes / us / 1e3 / bench.copy_gbs, 1e6 / us);
  }
  for (Step& step : steps) {
    for (void* pointer : step.copies) cudaFree(pointer);
  }
}

int run(const std::vector<std::string>& modes) {
  const auto wanted = [&](const char* mode) { return modes.empty() || std::ranges::find(modes, mode) != modes.end(); };
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  Linear linear(0);
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Checker checker{linear, stream};
  if (wanted("few")) checker.few();
  if (wanted("check")) checker.all();
  Bench bench{linear, stream};
  if (wanted("decode") || wanted("prefill") || wanted("chain")) bench.peaks();
  if (wanted("decode")) {
    for (const Shape& shape : kShapes) bench.time(kKinds[0], shape, {1, 8});
    for (const Kind& kind : kKinds) bench.time(kind, kShapes[5], {1, 16});
  }
  if (wanted("chain")) time_chain(bench, linear, stream);
  if (wanted("prefill")) {
    for (const Shape& shape : std::span(kShapes).first(6)) bench.time(kKinds[0], shape, {32, 64, 256, 2048});
    for (const Kind& kind : kKinds) bench.time(kind, kShapes[5], {2048});
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
