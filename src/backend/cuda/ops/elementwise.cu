// The elementwise ops, and those that move rows. HBM bandwidth bounds their speed: a thread takes eight elements where
// alignment allows.
#include "backend/cuda/device/activation.cuh"
#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/ops/ops.h"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocksMax = 1 << 16;  // with more work, a thread takes several groups in turn

// Calls body(row, first column) for every group of kWidth columns of a [rows, cols] matrix.
template <int kWidth, typename Body>
__device__ void for_each(int64_t rows, int64_t cols, Body body) {
  const int64_t groups = cols / kWidth, count = rows * groups;
  const uint32_t first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
  if (count + step <= UINT32_MAX) {  // a 64-bit division takes a hundred instructions
    const uint32_t few = static_cast<uint32_t>(groups), end = static_cast<uint32_t>(count);
    for (uint32_t i = first; i < end; i += step) body(i / few, i % few * kWidth);
    return;
  }
  for (int64_t i = first; i < count; i += step) body(i / groups, i % groups * kWidth);
}

unsigned blocks_for(int64_t work) {
  const int64_t blocks = (work + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kBlocksMax ? blocks : kBlocksMax);
}

// kWidth elements from memory as floats, and back.
template <int kWidth, typename T>
__device__ __forceinline__ void load(const T* from, float (&x)[kWidth]) {
  if constexpr (kWidth == 8) {
    load8(from, x);
  } else {
    x[0] = to_float(from[0]);
  }
}
template <int kWidth, typename T>
__device__ __forceinline__ void store(T* to, const float (&x)[kWidth]) {
  if constexpr (kWidth == 8) {
    store8(to, x);
  } else {
    to[0] = from_float<T>(x[0]);
  }
}

// body(std::integral_constant<int, 8 or 1>)
template <typename Body>
void with_width(bool eight, Body&& body) {
  if (eight) return body(std::integral_constant<int, 8>());
  body(std::integral_constant<int, 1>());
}

struct Shape {
  int64_t rows, cols, stride_a, stride_b;
};

template <int kWidth, typename X, typename Y>
__global__ void add_kernel(X* x, const Y* y, Shape s, float scale) {
  grid_release();
  grid_wait();
  for_each<kWidth>(s.rows, s.cols, [&](int64_t row, int64_t col) {
    float a[kWidth], b[kWidth];
    load<kWidth>(x + row * s.stride_a + col, a);
    load<kWidth>(y + row * s.stride_b + col, b);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) a[i] = (a[i] + b[i]) * scale;
    store<kWidth>(x + row * s.stride_a + col, a);
  });
}

template <int kWidth, typename X, typename Out>
__global__ void geglu_kernel(Out* out, const X* gate_up, Shape s) {
  grid_release();
  grid_wait();
  for_each<kWidth>(s.rows, s.cols, [&](int64_t row, int64_t col) {
    float gate[kWidth], up[kWidth];
    load<kWidth>(gate_up + row * s.stride_b + col, gate);
    load<kWidth>(gate_up + row * s.stride_b + s.cols + col, up);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) gate[i] = gelu_tanh_fast_division(gate[i]) * up[i];
    store<kWidth>(out + row * s.stride_a + col, gate);
  });
}

template <int kWidth, typename X>
__global__ void affine_kernel(X* x, const float* bias, const float* factor, Shape s) {
  grid_release();
  grid_wait();
  for_each<kWidth>(s.rows, s.cols, [&](int64_t row, int64_t col) {
    float a[kWidth];
    load<kWidth>(x + row * s.stride_a + col, a);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) a[i] = (a[i] - bias[col + i]) * factor[col + i];
    store<kWidth>(x + row * s.stride_a + col, a);
  });
}

template <int kWidth, typename X>
__global__ void softcap_kernel(X* x, float cap, Shape s) {
  grid_release();
  grid_wait();
  for_each<kWidth>(s.rows, s.cols, [&](int64_t row, int64_t col) {
    float a[kWidth];
    load<kWidth>(x + row * s.stride_a + col, a);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) a[i] = tanhf(a[i] / cap) * cap;
    store<kWidth>(x + row * s.stride_a + col, a);
  });
}

template <int kWidth, typename X, typename Out>
__global__ void convert_kernel(Out* out, const X* x, Shape s) {
  grid_release();
  grid_wait();
  for_each<kWidth>(s.rows, s.cols, [&](int64_t row, int64_t col) {
    float a[kWidth];
    load<kWidth>(x + row * s.stride_b + col, a);
    store<kWidth>(out + row * s.stride_a + col, a);
  });
}

// gather: out[i] = x[index[i]]; scatter (kScatter): out[index[i]] = x[i].
template <int kWidth, bool kScatter, typename X, typename Out>
__global__ void gather_scatter_kernel(Out* out, const X* x, const int32_t* index, Shape s) {
  grid_release();
  grid_wait();
  for_each<kWidth>(s.rows, s.cols, [&](int64_t row, int64_t col) {
    const int64_t to = kScatter ? index[row] : row, from = kScatter ? row : index[row];
    float a[kWidth];
    load<kWidth>(x + from * s.stride_b + col, a);
    store<kWidth>(out + to * s.stride_a + col, a);
  });
}

template <bool kScatter>
void move_rows(cudaStream_t stream, Tensor out, Tensor x, Tensor index, int64_t count) {
  CHECK(index.dtype == DType::kI32 && index.contiguous() && out.row_size() == x.row_size() && index.size() >= count);
  const Shape s = {count, x.row_size(), out.stride, x.stride};
  with_type(x.dtype, [&](auto* xt) {
    with_type(out.dtype, [&](auto* ot) {
      using X = std::remove_pointer_t<decltype(xt)>;
      using Out = std::remove_pointer_t<decltype(ot)>;
      with_width(aligned8(x) && aligned8(out) && s.cols % 8 == 0, [&](auto width) {
        launch(stream, blocks_for(s.rows * s.cols / width), kThreads, 0, gather_scatter_kernel<width, kScatter, X, Out>,
               data<Out>(out), data<X>(x), data<int32_t>(index), s);
      });
    });
  });
}

constexpr int kPoolCols = 4;  // columns of a thread

// A CTA sums the rows of x that belong to one row of out, in row order, so the result is deterministic.
template <typename X, typename Out>
__global__ void pool_kernel(Out* out, const X* x, const int32_t* group, Shape s, float scale) {
  __shared__ uint32_t matches[kThreads / 32];
  grid_release();
  grid_wait();
  const int col = (blockIdx.y * kThreads + threadIdx.x) * kPoolCols;
  float sum[kPoolCols] = {};
  for (int64_t base = 0; base < s.rows; base += kThreads) {
    const int64_t mine = base + threadIdx.x;
    const uint32_t mask = __ballot_sync(0xffffffffu, mine < s.rows && group[mine] == static_cast<int>(blockIdx.x));
    if (threadIdx.x % 32 == 0) matches[threadIdx.x / 32] = mask;
    __syncthreads();
    for (int w = 0; w < kThreads / 32; ++w) {
      for (uint32_t rest = matches[w]; rest; rest &= rest - 1) {
        const X* row = x + (base + w * 32 + __ffs(rest) - 1) * s.stride_b;
#pragma unroll
        for (int i = 0; i < kPoolCols; ++i) {
          if (col + i < s.cols) sum[i] += to_float(row[col + i]) * scale;
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kPoolCols; ++i) {
    if (col + i < s.cols) out[blockIdx.x * s.stride_a + col + i] = from_float<Out>(sum[i]);
  }
}

}  // namespace

void add(cudaStream_t stream, Tensor x, Tensor y, float scale) {
  CHECK(x.rows() == y.rows() && x.row_size() == y.row_size());
  const Shape s = {x.rows(), x.row_size(), x.stride, y.stride};
  with_type(x.dtype, [&](auto* xt) {
    with_type(y.dtype, [&](auto* yt) {
      using X = std::remove_pointer_t<decltype(xt)>;
      using Y = std::remove_pointer_t<decltype(yt)>;
      with_width(aligned8(x) && aligned8(y) && s.cols % 8 == 0, [&](auto width) {
        launch(stream, blocks_for(s.rows * s.cols / width), kThreads, 0, add_kernel<width, X, Y>, data<X>(x),
               data<Y>(y), s, scale);
      });
    });
  });
}

void geglu(cudaStream_t stream, Tensor out, Tensor gate_up) {
  CHECK(out.rows() == gate_up.rows() && gate_up.row_size() == 2 * out.row_size());
  const Shape s = {out.rows(), out.row_size(), out.stride, gate_up.stride};
  with_type(gate_up.dtype, [&](auto* xt) {
    with_type(out.dtype, [&](auto* ot) {
      using X = std::remove_pointer_t<decltype(xt)>;
      using Out = std::remove_pointer_t<decltype(ot)>;
      with_width(aligned8(gate_up) && aligned8(out) && s.cols % 8 == 0, [&](auto width) {
        launch(stream, blocks_for(s.rows * s.cols / width), kThreads, 0, geglu_kernel<width, X, Out>, data<Out>(out),
               data<X>(gate_up), s);
      });
    });
  });
}

void affine(cudaStream_t stream, Tensor x, Tensor bias, Tensor scale) {
  CHECK(bias.dtype == DType::kF32 && scale.dtype == DType::kF32);
  CHECK(bias.size() == x.row_size() && scale.size() == x.row_size());
  const Shape s = {x.rows(), x.row_size(), x.stride, 0};
  with_type(x.dtype, [&](auto* xt) {
    using X = std::remove_pointer_t<decltype(xt)>;
    with_width(aligned8(x) && s.cols % 8 == 0, [&](auto width) {
      launch(stream, blocks_for(s.rows * s.cols / width), kThreads, 0, affine_kernel<width, X>, data<X>(x),
             data<float>(bias), data<float>(scale), s);
    });
  });
}

void softcap(cudaStream_t stream, Tensor x, float cap) {
  const Shape s = {x.rows(), x.row_size(), x.stride, 0};
  with_type(x.dtype, [&](auto* xt) {
    using X = std::remove_pointer_t<decltype(xt)>;
    with_width(aligned8(x) && s.cols % 8 == 0, [&](auto width) {
      launch(stream, blocks_for(s.rows * s.cols / width), kThreads, 0, softcap_kernel<width, X>, data<X>(x), cap, s);
    });
  });
}

void convert(cudaStream_t stream, Tensor out, Tensor x) {
  CHECK(out.rows() == x.rows() && out.row_size() == x.row_size());
  const Shape s = {x.rows(), x.row_size(), out.stride, x.stride};
  with_type(x.dtype, [&](auto* xt) {
    with_type(out.dtype, [&](auto* ot) {
      using X = std::remove_pointer_t<decltype(xt)>;
      using Out = std::remove_pointer_t<decltype(ot)>;
      with_width(aligned8(x) && aligned8(out) && s.cols % 8 == 0, [&](auto width) {
        launch(stream, blocks_for(s.rows * s.cols / width), kThreads, 0, convert_kernel<width, X, Out>, data<Out>(out),
               data<X>(x), s);
      });
    });
  });
}

void gather(cudaStream_t stream, Tensor out, Tensor x, Tensor index) {
  move_rows<false>(stream, out, x, index, out.rows());
}

void scatter(cudaStream_t stream, Tensor x, Tensor rows, Tensor index) {
  move_rows<true>(stream, x, rows, index, rows.rows());
}

void pool(cudaStream_t stream, Tensor out, Tensor x, Tensor group, float scale) {
  CHECK(group.dtype == DType::kI32 && group.size() == x.rows() && out.row_size() == x.row_size());
  const Shape s = {x.rows(), x.row_size(), out.stride, x.stride};
  const dim3 grid(static_cast<unsigned>(out.rows()),
                  static_cast<unsigned>((s.cols + kThreads * kPoolCols - 1) / (kThreads * kPoolCols)));
  with_type(x.dtype, [&](auto* xt) {
    with_type(out.dtype, [&](auto* ot) {
      using X = std::remove_pointer_t<decltype(xt)>;
      using Out = std::remove_pointer_t<decltype(ot)>;
      launch(stream, grid, kThreads, 0, pool_kernel<X, Out>, data<Out>(out), data<X>(x), data<int32_t>(group), s,
             scale);
    });
  });
}

bool has_device_code() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, add_kernel<1, float, float>);
  cudaGetLastError();
  return error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction;
}

}  // namespace gemma4::cuda
