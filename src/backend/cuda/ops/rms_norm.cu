// rms_norm and add_rms_norm: RMSNorm over the last dimension, in float32. HBM bandwidth bounds the speed: each element
// is read once, into registers.
#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/device/reduce.cuh"
#include "backend/cuda/ops/ops.h"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

// The vectors to normalise: one for each (row, item), at row * stride + item * dim.
struct Items {
  int64_t x_stride, out_stride;  // elements between rows
  int per_row, dim;
};

// A CTA for each vector; each thread keeps kVectors groups of 8 elements. dim % 8 == 0, and every vector begins at a
// multiple of 16 bytes.
template <typename X, typename Out, int kVectors>
__global__ void rms_norm_block_kernel(Out* out, const X* x, const float* weight, Items items, float eps) {
  __shared__ float scratch[32];
  grid_release();
  grid_wait();
  const int64_t row = blockIdx.x / items.per_row, item = blockIdx.x % items.per_row;
  x += row * items.x_stride + item * items.dim;
  out += row * items.out_stride + item * items.dim;
  float value[kVectors][8];
  float squares = 0;
#pragma unroll
  for (int c = 0; c < kVectors; ++c) {
    const int at = (c * blockDim.x + threadIdx.x) * 8;
    if (at < items.dim) {
      load8(x + at, value[c]);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += value[c][i] * value[c][i];
    }
  }
  const float factor = rsqrtf(block_sum(squares, scratch) / items.dim + eps);
#pragma unroll
  for (int c = 0; c < kVectors; ++c) {
    const int at = (c * blockDim.x + threadIdx.x) * 8;
    if (at >= items.dim) continue;
    float w[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    if (weight) load8(weight + at, w);
#pragma unroll
    for (int i = 0; i < 8; ++i) w[i] *= value[c][i] * factor;
    store8(out + at, w);
  }
}

// A warp for each vector, any dim and alignment.
template <typename X, typename Out>
__global__ void rms_norm_warp_kernel(Out* out, const X* x, const float* weight, Items items, int64_t count, float eps) {
  grid_release();
  grid_wait();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (index >= count) return;
  const int lane = threadIdx.x % 32;
  x += index / items.per_row * items.x_stride + index % items.per_row * items.dim;
  out += index / items.per_row * items.out_stride + index % items.per_row * items.dim;
  float squares = 0;
  for (int i = lane; i < items.dim; i += 32) squares += to_float(x[i]) * to_float(x[i]);
  const float factor = rsqrtf(warp_sum(squares) / items.dim + eps);
  for (int i = lane; i < items.dim; i += 32) {
    out[i] = from_float<Out>(to_float(x[i]) * factor * (weight ? weight[i] : 1.0f));
  }
}

constexpr int kThreadsMax = 1024;  // of a CTA

int block_threads(int dim) {
  const int wanted = (dim / 8 + 31) / 32 * 32;
  return wanted < kThreadsMax ? wanted : kThreadsMax;
}

template <typename X, typename Out>
void rms_norm_typed(cudaStream_t stream, Tensor out, Tensor x, Tensor weight, float eps) {
  const int dim = static_cast<int>(last_dim(x));
  const Items items = {x.stride, out.stride, static_cast<int>(x.row_size() / dim), dim};
  const int64_t count = x.size() / dim;
  const float* w = data<float>(weight);
  const bool vectors = dim % 8 == 0 && dim >= 512 && dim <= 2 * 8 * kThreadsMax && aligned8(x) && aligned8(out) &&
                       (!w || reinterpret_cast<uintptr_t>(w) % 16 == 0);
  const unsigned blocks = static_cast<unsigned>(count);
  if (vectors && dim <= 8 * kThreadsMax) {
    launch(stream, blocks, block_threads(dim), 0, rms_norm_block_kernel<X, Out, 1>, data<Out>(out), data<X>(x), w,
           items, eps);
  } else if (vectors) {
    launch(stream, blocks, kThreadsMax, 0, rms_norm_block_kernel<X, Out, 2>, data<Out>(out), data<X>(x), w, items, eps);
  } else {
    launch(stream, static_cast<unsigned>((count + 7) / 8), 256, 0, rms_norm_warp_kernel<X, Out>, data<Out>(out),
           data<X>(x), w, items, count, eps);
  }
}

struct AddRmsNorm {
  int64_t out_stride, x_stride, y_stride;
  int dim;
  float scale, eps;
};

// A CTA for each row. Thread t keeps elements 8t .. 8t+7, so dim <= 8 * threads.
template <typename X, typename Y, typename Out>
__global__ void add_rms_norm_block_kernel(Out* out, X* x, const Y* y, const float* post, const float* next,
                                          AddRmsNorm p) {
  __shared__ float scratch[32];
  const int at = threadIdx.x * 8;
  const bool mine = at < p.dim;
  float w_post[8], w_next[8];
  if (mine) {  // read before grid_wait(), since no kernel writes weights
    load8(post + at, w_post);
    if (out) load8(next + at, w_next);
  }
  grid_release();
  grid_wait();
  x += blockIdx.x * p.x_stride;
  y += blockIdx.x * p.y_stride;
  float a[8], b[8];
  float squares = 0;
  if (mine) {
    load8(y + at, b);
    load8(x + at, a);
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += b[i] * b[i];
  }
  const float factor = rsqrtf(block_sum(squares, scratch) / p.dim + p.eps);
  squares = 0;
  if (mine) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      a[i] = (a[i] + b[i] * factor * w_post[i]) * p.scale;
      squares += a[i] * a[i];
    }
    store8(x + at, a);
  }
  if (!out) return;
  const float next_factor = rsqrtf(block_sum(squares, scratch) / p.dim + p.eps);
  if (!mine) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) a[i] *= next_factor * w_next[i];
  store8(out + blockIdx.x * p.out_stride + at, a);
}

__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ __forceinline__ float4 load4(const __nv_bfloat16* from) {
  const uint2 raw = *reinterpret_cast<const uint2*>(from);
  const float2 low = unpack_bf16x2(raw.x), high = unpack_bf16x2(raw.y);
  return make_float4(low.x, low.y, high.x, high.y);
}
__device__ __forceinline__ void store4(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }
__device__ __forceinline__ void store4(__nv_bfloat16* to, float4 x) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16x2(x.x, x.y), pack_bf16x2(x.z, x.w));
}
__device__ __forceinline__ void store4(__half* to, float4 x) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack_f16x2(x.x, x.y), pack_f16x2(x.z, x.w));
}
__device__ __forceinline__ float squared(float4 x) { return x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w; }

constexpr int kWarpKernelRows = 4;  // of a CTA of add_rms_norm_warp_kernel

// A warp for each row of 128 * kVectors elements, for many short rows: no barrier, and all loads of a row in flight.
template <typename X, typename Y, typename Out, int kVectors>
__global__ void __launch_bounds__(kWarpKernelRows * 32)
    add_rms_norm_warp_kernel(Out* out, X* x, const Y* y, const float* post, const float* next, AddRmsNorm p, int rows) {
  grid_release();
  grid_wait();
  const int row = blockIdx.x * kWarpKernelRows + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  x += row * p.x_stride + lane * 4;
  y += row * p.y_stride + lane * 4;
  post += lane * 4;
  float4 a[kVectors], b[kVectors];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) b[i] = load4(y + i * 128);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) a[i] = load4(x + i * 128);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) squares += squared(b[i]);
  const float factor = rsqrtf(warp_sum(squares) / p.dim + p.eps);
  squares = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const float4 w = load4(post + i * 128);
    a[i].x = (a[i].x + b[i].x * factor * w.x) * p.scale;
    a[i].y = (a[i].y + b[i].y * factor * w.y) * p.scale;
    a[i].z = (a[i].z + b[i].z * factor * w.z) * p.scale;
    a[i].w = (a[i].w + b[i].w * factor * w.w) * p.scale;
    squares += squared(a[i]);
    store4(x + i * 128, a[i]);
  }
  if (!out) return;
  const float next_factor = rsqrtf(warp_sum(squares) / p.dim + p.eps);
  out += row * p.out_stride + lane * 4;
  next += lane * 4;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const float4 w = load4(next + i * 128);
    store4(out + i * 128, make_float4(a[i].x * next_factor * w.x, a[i].y * next_factor * w.y,
                                      a[i].z * next_factor * w.z, a[i].w * next_factor * w.w));
  }
}

// The vision tower has many rows of 1152 elements.
constexpr int kVisionVectors = 9, kWarpRowsMin = 64;

}  // namespace

void rms_norm(cudaStream_t stream, Tensor out, Tensor x, Tensor weight, float eps) {
  CHECK(out.size() == x.size() && last_dim(out) == last_dim(x) && out.rows() == x.rows());
  CHECK(!weight || (weight.dtype == DType::kF32 && weight.size() == last_dim(x)));
  with_type(x.dtype, [&](auto* xt) {
    with_wider_type(out.dtype, [&](auto* ot) {
      rms_norm_typed<std::remove_pointer_t<decltype(xt)>, std::remove_pointer_t<decltype(ot)>>(stream, out, x, weight,
                                                                                               eps);
    });
  });
}

void add_rms_norm(cudaStream_t stream, Tensor out, Tensor x, Tensor y, Tensor post, float scale, Tensor next,
                  float eps) {
  const int dim = static_cast<int>(x.row_size());
  CHECK(y.rows() == x.rows() && y.row_size() == dim);
  const auto plain = [&](const Tensor& w) {
    return w && w.dtype == DType::kF32 && w.size() == dim && reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
  };
  const bool fused = dim % 8 == 0 && dim <= 8 * kThreadsMax && aligned8(x) && aligned8(y) && plain(post) &&
                     (!out || (aligned8(out) && plain(next) && out.dtype != DType::kF32));
  if (!fused) {
    rms_norm(stream, y, y, post, eps);
    add(stream, x, y, scale);
    if (out) rms_norm(stream, out, x, next, eps);
    return;
  }
  const AddRmsNorm p = {out.stride, x.stride, y.stride, dim, scale, eps};
  with_type(x.dtype, [&](auto* xt) {
    with_type(y.dtype, [&](auto* yt) {
      using X = std::remove_pointer_t<decltype(xt)>;
      using Y = std::remove_pointer_t<decltype(yt)>;
      const auto start = [&](auto* to) {
        using Out = std::remove_pointer_t<decltype(to)>;
        if (dim == 128 * kVisionVectors && x.rows() >= kWarpRowsMin) {
          launch(stream, static_cast<unsigned>((x.rows() + kWarpKernelRows - 1) / kWarpKernelRows),
                 kWarpKernelRows * 32, 0, add_rms_norm_warp_kernel<X, Y, Out, kVisionVectors>, to, data<X>(x),
                 data<Y>(y), data<float>(post), data<float>(next), p, static_cast<int>(x.rows()));
          return;
        }
        launch(stream, static_cast<unsigned>(x.rows()), block_threads(dim), 0, add_rms_norm_block_kernel<X, Y, Out>, to,
               data<X>(x), data<Y>(y), data<float>(post), data<float>(next), p);
      };
      out&& out.dtype == DType::kF16 ? start(data<__half>(out)) : start(data<__nv_bfloat16>(out));
    });
  });
}

}  // namespace gemma4::cuda
