// Checks the linear layers against double precision on random weights, for cuda_linear_bench.
#pragma once

#include <cmath>
#include <cstdio>
#include <span>
#include <vector>

#include "backend/cuda/gemm/linear.h"
#include "backend/cuda/gemm/linear_data_testing.h"

namespace gemma4::cuda {

struct Checker {
  Linear& linear;
  cudaStream_t stream;
  int failed = 0, done = 0;

  // Double-precision dot products of the stacked rows `wanted` with every row of x: [wanted, n].
  std::vector<double> reference(const std::vector<Weight>& weights, const std::vector<int64_t>& wanted, const Inputs& x,
                                int64_t n) {
    const int64_t cols = weights[0].matrix.cols;
    std::vector<double> out(wanted.size() * n);
    pool().parallel_for(static_cast<int64_t>(wanted.size()), 1, [&](int64_t begin, int64_t end) {
      std::vector<float> row(cols);
      for (int64_t i = begin; i < end; ++i) {
        int64_t r = wanted[i];
        size_t at = 0;
        while (r >= weights[at].matrix.rows) r -= weights[at++].matrix.rows;
        unpack_row(weights[at].matrix, r, row.data());
        for (int64_t j = 0; j < n; ++j) {
          double sum = 0;
          for (int64_t c = 0; c < cols; ++c) sum += static_cast<double>(row[c]) * bf16_to_float(x.host[j * cols + c]);
          out[i * n + j] = sum;
        }
      }
    });
    return out;
  }

  void check(const FormatCase& format_case, std::vector<int64_t> heights, int64_t cols, int64_t n, bool geglu,
             DType out_type, bool wild = false) {
    std::vector<Weight> weights;
    int64_t rows = 0;
    for (int64_t height : heights) weights.push_back(make_weight(format_case, height, cols, 77 + rows)), rows += height;
    std::vector<Matrix> views;
    for (const Weight& weight : weights) views.push_back(weight.matrix);
    std::vector<void*> allocated;
    const DeviceMatrix w = linear.upload(
        views,
        [&](int64_t bytes) {
          void* pointer = nullptr;
          CUDA_CHECK(cudaMalloc(&pointer, bytes));
          allocated.push_back(pointer);
          return pointer;
        },
        stream);
    const Inputs x(n, cols, 5 + n, wild);
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
      worst = std::max(worst, compare(weights, x, n, rows, geglu, got, item, unwritten));
    }
    for (void* pointer : allocated) CUDA_CHECK(cudaFree(pointer));
    const bool exact = out_type == DType::kF32 && n <= kGemvRowsMax && w.layout != Layout::kBF16;
    // wild: fixed point loses what is 2^14 below the largest of its 64, less than bf16 x loses by rounding (1.7e-3)
    const double limit = !exact ? 6e-3 : wild ? 5e-4 : 1e-4;
    const bool good =
        worst < limit && unwritten == 0 && w.layout == (cols % 64 == 0 ? format_case.layout : Layout::kBF16);
    ++done;
    if (!good) ++failed;
    std::printf("%-13s %6ld x %5ld n %4ld%s%s -> %-13s error %.2e limit %.0e unwritten %ld %s\n", format_case.name,
                rows, cols, n, geglu ? " geglu" : "", item == 4 ? wild ? " f32 wild" : " f32" : "",
                layout_name(w.layout), worst, limit, unwritten, good ? "ok" : "FAILED");
  }

  // |out - reference| / |reference| over some rows; counts outputs that were not written (NaN).
  double compare(const std::vector<Weight>& weights, const Inputs& x, int64_t n, int64_t rows, bool geglu,
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
    const int64_t budget = std::max<int64_t>(48, 400'000'000 / (weights[0].matrix.cols * n * 4));
    const int64_t step = std::max<int64_t>(1, outs / std::min<int64_t>(outs, std::min<int64_t>(budget, 700)));
    for (int64_t i = 0; i < outs; i += step) sample.push_back(i);
    sample.push_back(outs - 1);
    std::vector<double> first = reference(weights, sample, x, n);
    if (geglu) {
      std::vector<int64_t> second = sample;
      for (int64_t& i : second) i += outs;
      const std::vector<double> up = reference(weights, second, x, n);
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

  void embed(const FormatCase& format_case, int64_t rows, int64_t cols) {
    std::vector<Weight> weights;
    weights.push_back(make_weight(format_case, rows, cols, 3));
    const DeviceBuffer space(rows * cols * 2 + 256 * cols * 2), ids(5 * 4), out(5 * cols * 4);
    const DeviceMatrix w = linear.upload(
        std::span(&weights[0].matrix, 1), [&](int64_t) { return space.data; }, stream);
    const std::vector<int32_t> host = {0, static_cast<int32_t>(rows - 1), 17, 130, 17};
    CUDA_CHECK(cudaMemcpy(ids.data, host.data(), 20, cudaMemcpyHostToDevice));
    linear.embed(Tensor(out.data, DType::kF32, {5, cols}), w, Tensor(ids.data, DType::kI32, {5}), 73.5f, stream);
    std::vector<float> got(5 * cols), row(cols);
    CUDA_CHECK(cudaMemcpyAsync(got.data(), out.data, got.size() * 4, cudaMemcpyDeviceToHost, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    double worst = 0;
    for (int i = 0; i < 5; ++i) {
      unpack_row(weights[0].matrix, host[i], row.data());
      for (int64_t c = 0; c < cols; ++c) {
        worst = std::max(worst, std::abs(row[c] * 73.5 - got[i * cols + c]) / (std::abs(row[c] * 73.5) + 1e-3));
      }
    }
    ++done;
    if (!(worst < 1e-5)) ++failed;
    std::printf("%-13s embed %ld x %ld error %.2e %s\n", format_case.name, rows, cols, worst,
                worst < 1e-5 ? "ok" : "FAILED");
  }

  void few() {  // the kernels for packed weights on small shapes, for compute-sanitizer
    check(kFormatCases[0], {272, 48}, 768, 1, false, DType::kBF16);
    check(kFormatCases[0], {272, 48}, 768, 13, false, DType::kF32);
    few_variants();
    check(kFormatCases[0], {192, 192}, 1024, 40, true, DType::kBF16);
    check(kFormatCases[0], {200, 200}, 1024, 130, true, DType::kBF16);
    check(kFormatCases[5], {272, 48}, 768, 70, false, DType::kBF16);
  }

  // Heights and widths that do not fill a row tile, a stage or all blocks; row counts at the limits of the kernels.
  void awkward() {
    for (const int i : {0, 5, 7}) {
      for (const int64_t height : {1, 7, 9, 17, 127, 129})
        check(kFormatCases[i], {height}, 192, 2, false, DType::kBF16);
      for (const int64_t n : {1, 2, 4, 5, 6, 7, 8, 9, 16, 17})
        check(kFormatCases[i], {136}, 320, n, false, DType::kBF16);
      for (const int64_t cols : {64, 128, 576}) check(kFormatCases[i], {8, 8}, cols, 5, true, DType::kBF16);
      check(kFormatCases[i], {12, 12}, 256, 3, true, DType::kBF16);    // not interleaved: not a multiple of 8
      check(kFormatCases[i], {5376}, 512, 1300, false, DType::kBF16);  // a whole wave of output tiles, and divided ones
      check(kFormatCases[i], {2696, 2696}, 512, 1300, true, DType::kBF16);
      check(kFormatCases[i], {264}, 256, 5, false, DType::kF32, true);
    }
  }

  void few_variants() {
    linear.force_gemv(GemvVariant::kInt8);
    for (const int64_t n : {1, 3, 6}) check(kFormatCases[0], {272, 48}, 768, n, false, DType::kF32);
    linear.force_gemv(GemvVariant::kBest);
  }

  // One GEMV kernel wherever it fits.
  void variant(GemvVariant which, const char* name) {
    std::printf("variant %s\n", name);
    linear.force_gemv(which);
    for (const int i : {0, 1, 2, 7}) {
      for (const int64_t n : {1, 2, 3, 4, 5, 7, 8, 9}) check(kFormatCases[i], {272, 48}, 768, n, false, DType::kF32);
      for (const int64_t n : {1, 3}) {
        for (const int64_t cols : {64, 192, 320, 576}) {
          if (cols % std::max(kFormatCases[i].group, 1) == 0)
            check(kFormatCases[i], {136}, cols, n, false, DType::kF32);
        }
        for (const int64_t height : {1, 9, 17, 129}) check(kFormatCases[i], {height}, 512, n, false, DType::kBF16);
      }
      check(kFormatCases[i], {300}, 5376, 1, false, DType::kF32, true);
      check(kFormatCases[i], {512, 512}, 5376, 1, true, DType::kBF16);
      check(kFormatCases[i], {192, 192}, 512, 6, true, DType::kBF16);
      check(kFormatCases[i], {300}, 5376, 5, false, DType::kF32, true);
      check(kFormatCases[i], {5376}, 21504, 1, false, DType::kF32);
      check(kFormatCases[i], {16384, 2048}, 5376, 8, false, DType::kBF16);
    }
    linear.force_gemv(GemvVariant::kBest);
  }

  // One GEMM kernel wherever it fits: row counts about the edges of output tiles, odd heights, whole waves and divided
  // tiles, GeGLU, both output types.
  void gemm(GemmVariant which, const char* name) {
    std::printf("gemm %s\n", name);
    linear.force_gemm(which);
    for (const FormatCase& format_case : std::span(kFormatCases).first(11)) {
      for (const int64_t n : {17, 33, 64, 65, 100, 129, 300}) {
        check(format_case, {272, 48}, 768, n, false, n % 2 == 1 ? DType::kF32 : DType::kBF16);
        check(format_case, {200, 200}, 512, n, true, DType::kBF16);
      }
      for (const int64_t height : {8, 24, 120, 136}) check(format_case, {height}, 256, 33, false, DType::kF32);
      check(format_case, {200, 200}, 512, 129, false, DType::kF32);  // interleaved, without GeGLU
      check(format_case, {200, 200}, 512, 129, false, DType::kBF16);
      check(format_case, {5376}, 512, 1300, false, DType::kBF16);
    }
    for (const DType type : {DType::kBF16, DType::kF32}) check(kFormatCases[0], {5376}, 8192, 300, false, type);
    check(kFormatCases[0], {5376}, 64, 2300, false, DType::kF32);  // more than 16 tiles of x; one column range
    check(kFormatCases[0], {264}, 128, 4500, false, DType::kBF16);
    check(kFormatCases[0], {2696, 2696}, 512, 1300, true, DType::kBF16);
    check(kFormatCases[0], {21504, 21504}, 5376, 256, true, DType::kBF16);
    check(kFormatCases[0], {5376}, 21504, 40, false, DType::kF32);
    linear.force_gemm(GemmVariant::kBest);
  }

  void all() {
    awkward();
    for (const FormatCase& format_case : kFormatCases) {
      for (const int64_t n : {1, 3, 8, 13, 33, 200}) check(format_case, {272, 48}, 768, n, false, DType::kF32);
      for (const int64_t n : {17, 64, 200}) check(format_case, {272, 48}, 768, n, false, DType::kBF16);
      check(format_case, {512, 512}, 5376, 2, true, DType::kBF16);
      check(format_case, {192, 192}, 512, 11, true, DType::kBF16);
      check(format_case, {192, 192}, 1024, 40, true, DType::kBF16);
      check(format_case, {200, 200}, 1024, 130, true, DType::kBF16);
      check(format_case, {72}, 2048, 1, false, DType::kBF16);
      embed(format_case, 300, 512);
    }
    check(kFormatCases[0], {5376}, 21504, 1, false, DType::kF32);
    check(kFormatCases[0], {5376}, 8192, 4, false, DType::kF32);
    check(kFormatCases[0], {16384, 2048}, 5376, 1, false, DType::kBF16);
    check(kFormatCases[0], {21504, 21504}, 5376, 1, true, DType::kBF16);
    for (const DType type : {DType::kBF16, DType::kF32}) check(kFormatCases[0], {5376}, 8192, 300, false, type);
    check(kFormatCases[0], {5376}, 512, 1300, false, DType::kF32);
    check(kFormatCases[0], {21504, 21504}, 5376, 256, true, DType::kBF16);
    check(kFormatCases[11], {100}, 1152, 50, false, DType::kBF16);
    check(kFormatCases[11], {1152}, 4304, 64, false, DType::kBF16);
    check(kFormatCases[11], {37}, 75, 3, false, DType::kF32);
    check(kFormatCases[0], {40}, 96, 3, false, DType::kF32);
  }
};

}  // namespace gemma4::cuda
