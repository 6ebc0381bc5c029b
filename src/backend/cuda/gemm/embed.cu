// Embedding lookup: rows of a weight matrix of any layout, unpacked and scaled.
#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/gemm/kernels.h"
#include "backend/cuda/gemm/layout_codec.cuh"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

// A thread for each output.
template <typename Weights, typename Out>
__global__ void embed_kernel(Weights table, const int32_t* ids, float scale, Out* out, int64_t stride, int rows,
                             int cols) {
  grid_release();
  grid_wait();
  const int col = blockIdx.x * blockDim.x + threadIdx.x;
  if (col >= cols) return;
  const int id = ids[blockIdx.y];
  const float value = id >= 0 && id < rows ? table(id, col) * scale : 0.0f;
  out[blockIdx.y * stride + col] = from_float<Out>(value);
}

}  // namespace

void embed_rows(Tensor out, const DeviceMatrix& table, Tensor ids, float scale, cudaStream_t stream) {
  with_reader(table, [&](auto reader) {
    with_type(out.dtype, [&](auto* type) {
      using Out = std::decay_t<decltype(*type)>;
      const dim3 grid(static_cast<unsigned>((table.cols + 127) / 128), static_cast<unsigned>(out.rows()));
      launch(stream, grid, dim3(128), 0, embed_kernel<decltype(reader), Out>, reader, data<const int32_t>(ids), scale,
             data<Out>(out), out.stride, static_cast<int>(table.rows), static_cast<int>(table.cols));
    });
  });
}

}  // namespace gemma4::cuda
