// out[n, rows] = x[n, cols] w^T for any shape, stride and layout: one warp for each output, single loads. It runs where
// no other kernel fits; its speed does not matter.
#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/device/reduce.cuh"
#include "backend/cuda/gemm/kernels.h"
#include "backend/cuda/gemm/layout_codec.cuh"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

template <typename Weights, typename X, typename Out>
__global__ void gemv_naive_kernel(Weights w, const X* x, int64_t x_stride, Out* out, int64_t out_stride, int rows,
                                  int cols) {
  grid_release();
  grid_wait();
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  float sum = 0;
  for (int col = lane; col < cols; col += 32) {
    sum = fmaf(w(row, col), to_float(x[blockIdx.y * x_stride + col]), sum);
  }
  sum = warp_sum(sum);
  if (lane == 0) out[blockIdx.y * out_stride + row] = from_float<Out>(sum);
}

}  // namespace

void gemv_naive(const LinearCall& call, cudaStream_t stream) {
  const auto run = [&](auto reader, const auto* x) {
    with_type(call.out.dtype, [&](auto* type) {
      using X = std::decay_t<decltype(*x)>;
      using Out = std::decay_t<decltype(*type)>;
      const dim3 grid(static_cast<unsigned>((call.w.rows + 7) / 8), static_cast<unsigned>(call.x.rows()));
      launch(stream, grid, dim3(256), 0, gemv_naive_kernel<decltype(reader), X, Out>, reader, x, call.x.stride,
             data<Out>(call.out), call.out.stride, static_cast<int>(call.w.rows), static_cast<int>(call.w.cols));
    });
  };
  if (call.x.dtype == DType::kF16) return run(bf16_reader(call.w), data<const __half>(call.x));
  with_reader(call.w, [&](auto reader) { run(reader, data<const __nv_bfloat16>(call.x)); });
}

}  // namespace gemma4::cuda
