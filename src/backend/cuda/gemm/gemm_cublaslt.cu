// out[n, rows] = x[n, cols] w^T through cuBLASLt. It multiplies bfloat16 by bfloat16, so packed weights are unpacked
// first and float16 activations are split into two bfloat16 terms. It runs where gemm_wgmma() does not.
#include <cuda_fp16.h>

#include <algorithm>

#include "backend/cuda/gemm/kernels.h"
#include "backend/cuda/gemm/layout_codec.cuh"
#include "backend/cuda/gemm/select_kernel.h"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

// Rows of packed weights to bfloat16 [count, cols]: two neighbouring columns a thread.
template <typename Weights>
__global__ void unpack_kernel(Weights w, int first, int cols, __nv_bfloat162* out) {
  grid_release();
  grid_wait();
  const int pair = blockIdx.x * blockDim.x + threadIdx.x;
  if (pair * 2 >= cols) return;
  const int row = first + blockIdx.y;
  out[static_cast<int64_t>(blockIdx.y) * (cols / 2) + pair] =
      __floats2bfloat162_rn(w(row, pair * 2), w(row, pair * 2 + 1));
}

// A float16 has 11 bits of mantissa, so it is the sum of two bfloat16 numbers, exactly. high, low: [rows, cols].
__global__ void split_float16_kernel(const __half* x, int64_t stride, __nv_bfloat16* high, __nv_bfloat16* low,
                                     int cols) {
  grid_release();
  grid_wait();
  const int col = blockIdx.x * blockDim.x + threadIdx.x;
  if (col >= cols) return;
  const float value = __half2float(x[blockIdx.y * stride + col]);
  const __nv_bfloat16 near = __float2bfloat16_rn(value);
  high[static_cast<int64_t>(blockIdx.y) * cols + col] = near;
  low[static_cast<int64_t>(blockIdx.y) * cols + col] = __float2bfloat16_rn(value - __bfloat162float(near));
}

// out = a + b, both [rows, cols].
__global__ void add_products_kernel(float* out, int64_t stride, const float* a, const float* b, int cols) {
  grid_release();
  grid_wait();
  const int col = blockIdx.x * blockDim.x + threadIdx.x;
  const int64_t at = static_cast<int64_t>(blockIdx.y) * cols + col;
  if (col < cols) out[blockIdx.y * stride + col] = a[at] + b[at];
}

dim3 grid_over(int64_t cols, int threads, int64_t rows) {
  return dim3(static_cast<unsigned>((cols + threads - 1) / threads), static_cast<unsigned>(rows));
}

CublasLt& library(CublasLtWorkspace& workspace) {
  if (!workspace.library) workspace.library = std::make_unique<CublasLt>();
  return *workspace.library;
}

}  // namespace

void gemm_cublaslt(const LinearCall& call, CublasLtWorkspace& workspace, cudaStream_t stream) {
  const DeviceMatrix& w = call.w;
  library(workspace).gemm(call.out, call.x, w.data, w.rows, w.pitch, workspace.memory, stream);
}

// As many rows of w at a time as the scratch memory holds.
void gemm_cublaslt_unpack(const LinearCall& call, CublasLtWorkspace& workspace, cudaStream_t stream) {
  const DeviceMatrix& w = call.w;
  const int64_t step = scratch_rows(CublasLtWorkspace::kScratchElements, w.cols);
  for (int64_t row = 0; row < w.rows; row += step) {
    const int64_t count = std::min(step, w.rows - row);
    with_codec(w.layout, [&](auto codec) {
      using Weights = WeightReader<decltype(codec)>;
      launch(stream, grid_over(w.cols / 2, 128, count), dim3(128), 0, unpack_kernel<Weights>, Weights{packed(w)},
             static_cast<int>(row), static_cast<int>(w.cols), reinterpret_cast<__nv_bfloat162*>(workspace.scratch));
    });
    library(workspace).gemm(call.out.columns(row, count), call.x, workspace.scratch, count, w.cols, workspace.memory,
                            stream);
  }
}

// high w^T + low w^T, summed in float32. For few rows, high and low are stacked into one GEMM, so that w is read once.
void gemm_cublaslt_float16(const LinearCall& call, CublasLtWorkspace& workspace, cudaStream_t stream) {
  CHECK(call.out.dtype == DType::kF32);
  constexpr int64_t kElements = CublasLtWorkspace::kScratchElements;
  const DeviceMatrix& w = call.w;
  CublasLt& lt = library(workspace);
  const int64_t rows_max = kElements / (2 * w.cols);
  for (int64_t begin = 0; begin < call.x.rows(); begin += rows_max) {
    const int64_t n = std::min(rows_max, call.x.rows() - begin);
    const Tensor from = call.x.slice(begin, n), to = call.out.slice(begin, n);
    const Tensor terms(workspace.scratch, DType::kBF16, {2 * n, w.cols});
    const Tensor high = terms.slice(0, n), low = terms.slice(n, n);
    launch(stream, grid_over(w.cols, 256, n), dim3(256), 0, split_float16_kernel, from.row<const __half>(0),
           from.stride, high.row<__nv_bfloat16>(0), low.row<__nv_bfloat16>(0), static_cast<int>(w.cols));
    if (n > kGemvRowsMax || 2 * n * (w.cols + 2 * w.rows) > kElements) {
      lt.gemm(to, high, w.data, w.rows, w.pitch, workspace.memory, stream);
      lt.gemm(to, low, w.data, w.rows, w.pitch, workspace.memory, stream, true);
      continue;
    }
    const Tensor products(workspace.scratch + terms.size(), DType::kF32, {2 * n, w.rows});
    lt.gemm(products, terms, w.data, w.rows, w.pitch, workspace.memory, stream);
    launch(stream, grid_over(w.rows, 256, n), dim3(256), 0, add_products_kernel, to.row<float>(0), to.stride,
           products.row<const float>(0), products.row<const float>(n), static_cast<int>(w.rows));
  }
}

}  // namespace gemma4::cuda
