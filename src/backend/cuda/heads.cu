// rope, kv_write, and heads: the norms of q, k and v, the rotation and the cache write of one layer in one launch.
#include "backend/cuda/device/element.cuh"
#include "backend/cuda/device/reduce.cuh"
#include "backend/cuda/dispatch.cuh"
#include "backend/cuda/kv_view.cuh"
#include "backend/cuda/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kDimMax = 512;

struct RopeView {
  const float* inv_freq;  // [block / 2]
  int block, axes;
  const int32_t* pos;  // [rows, axes]
  int64_t pos_stride;
};

RopeView view(const Rope& rope, const Tensor& pos, int dim) {
  CHECK(rope.block > 0 && rope.block % 2 == 0 && dim % rope.block == 0);
  CHECK(rope.inv_freq.dtype == DType::kF32 && rope.inv_freq.size() == rope.block / 2);
  CHECK(pos.dtype == DType::kI32 && pos.row_size() >= dim / rope.block);
  return {data<float>(rope.inv_freq), rope.block, dim / rope.block, data<int32_t>(pos), pos.stride};
}

// Cosine and sine of pair i of the head (blocks one after the other) for a row.
__device__ __forceinline__ float2 turn(const RopeView& rope, int64_t row, int i) {
  const int half = rope.block / 2, axis = i / half;
  const float angle = static_cast<float>(rope.pos[row * rope.pos_stride + axis]) * rope.inv_freq[i % half];
  float2 result;
  sincosf(angle, &result.y, &result.x);
  return result;
}

template <typename T>
__global__ void rope_kernel(T* x, int64_t stride, int64_t rows, int heads, int dim, RopeView rope) {
  grid_release();
  grid_wait();
  const int half = rope.block / 2, pairs = dim / 2;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= rows * heads * pairs) return;
  const int pair = index % pairs, head = index / pairs % heads;
  const int64_t row = index / pairs / heads;
  const float2 t = turn(rope, row, pair);
  T* a = x + row * stride + head * dim + pair / half * rope.block + pair % half;
  const float low = to_float(a[0]), high = to_float(a[half]);
  a[0] = from_float<T>(low * t.x - high * t.y);
  a[half] = from_float<T>(high * t.x + low * t.y);
}

// One warp for each (row, head).
template <typename X>
__global__ void kv_write_kernel(KvView kv, const X* k, int64_t k_stride, const X* v, int64_t v_stride, const int4* rows,
                                int count) {
  grid_release();
  grid_wait();
  const int index = blockIdx.x * kWarps + threadIdx.x / 32;
  if (index >= count * kv.heads) return;
  const int row = index / kv.heads, head = index % kv.heads;
  const int64_t place = kv_place(kv, rows[row].x, rows[row].y, head);
  k += row * k_stride + head * kv.dim;
  v += row * v_stride + head * kv.dim;
  attend_t* to_v = static_cast<attend_t*>(kv.v) + place;
  attend_t* to_k = kv.rotated ? nullptr : static_cast<attend_t*>(kv.k) + place;
  for (int e = threadIdx.x % 32; e < kv.dim; e += 32) {
    to_v[e] = from_float<attend_t>(to_float(v[e]));
    const attend_t key = from_float<attend_t>(to_float(k[e]));
    if (to_k) {
      to_k[e] = key;
    } else if (const int at = kv_rotated_index(kv, e); at >= 0) {
      to_v[at] = key;
    }
  }
}

template <typename X>
struct HeadsView {
  attend_t* query;
  const X *q, *k, *v;  // v null: V is K before its norm
  int64_t query_stride, q_stride, k_stride, v_stride;
  const float *q_norm, *k_norm;
  int q_heads, dim;
  float eps;
};

__device__ __forceinline__ float2 load2(const float* from) { return *reinterpret_cast<const float2*>(from); }
__device__ __forceinline__ float2 load2(const __nv_bfloat16* from) {
  return unpack_bf16x2(*reinterpret_cast<const uint32_t*>(from));
}

// The warp's head, divided by its RMS, into `x` (shared, [dim]).
template <typename X>
__device__ __forceinline__ void normalise(float* x, const X* from, int dim, float eps) {
  const int lane = threadIdx.x % 32;
  float squares = 0;
  for (int e = lane; e < dim / 2; e += 32) {
    const float2 pair = load2(from + 2 * e);
    squares += pair.x * pair.x + pair.y * pair.y;
    reinterpret_cast<float2*>(x)[e] = pair;
  }
  const float factor = rsqrtf(warp_sum(squares) / dim + eps);
  for (int e = lane; e < dim / 2; e += 32) {
    float2 pair = reinterpret_cast<float2*>(x)[e];
    pair.x *= factor, pair.y *= factor;
    reinterpret_cast<float2*>(x)[e] = pair;
  }
  __syncwarp();
}

// Element e of the head in `x` times `weight`, rotated by `turns` [dim / 2].
__device__ __forceinline__ float rotated(const float* x, const float* weight, const float2* turns, int block, int e) {
  const int half = block / 2, i = e % block;
  const bool low = i < half;
  const int partner = low ? e + half : e - half;
  const float2 t = turns[e / block * half + (low ? i : i - half)];
  const float other = x[partner] * weight[partner];
  return x[e] * weight[e] * t.x + (low ? -other : other) * t.y;
}

// The whole head, rotated, to `to`.
__device__ __forceinline__ void write_rotated(attend_t* to, const float* x, const float* weight, const float2* turns,
                                              int block, int dim) {
  for (int e = threadIdx.x % 32 * 2; e < dim; e += 64) {
    *reinterpret_cast<uint32_t*>(to + e) =
        pack_attend(rotated(x, weight, turns, block, e), rotated(x, weight, turns, block, e + 1));
  }
}

// A block for kWarps heads of one row; a warp for a head. Heads in order: q, k, v.
template <typename X>
__global__ void heads_kernel(HeadsView<X> h, RopeView rope, KvView kv, const int4* rows) {
  __shared__ float2 turns[kDimMax / 2];
  __shared__ float values[kWarps][kDimMax];
  grid_release();
  const int row = blockIdx.y, lane = threadIdx.x % 32;
  const int index = blockIdx.x * kWarps + threadIdx.x / 32;
  const int dim = h.dim;
  grid_wait();
  for (int i = threadIdx.x; i < dim / 2; i += blockDim.x) turns[i] = turn(rope, row, i);
  __syncthreads();
  float* x = values[threadIdx.x / 32];
  if (index < h.q_heads) {
    normalise(x, h.q + row * h.q_stride + index * dim, dim, h.eps);
    return write_rotated(h.query + row * h.query_stride + index * dim, x, h.q_norm, turns, rope.block, dim);
  }
  const int head = (index - h.q_heads) % kv.heads, part = (index - h.q_heads) / kv.heads;
  if (part >= (h.v ? 2 : 1)) return;
  const int64_t place = kv_place(kv, rows[row].x, rows[row].y, head);
  attend_t* to_v = static_cast<attend_t*>(kv.v) + place;
  normalise(x, part ? h.v + row * h.v_stride + head * dim : h.k + row * h.k_stride + head * dim, dim, h.eps);
  if (part == 1 || !h.v) {
    for (int e = lane * 2; e < dim; e += 64) *reinterpret_cast<uint32_t*>(to_v + e) = pack_attend(x[e], x[e + 1]);
  }
  if (part == 1) return;
  if (kv.rotated) {
    for (int i = lane; i < 2 * kv.rotated; i += 32) {
      const int e = i < kv.rotated ? i : dim / 2 + i - kv.rotated;
      to_v[dim + i] = from_float<attend_t>(rotated(x, h.k_norm, turns, rope.block, e));
    }
    return;
  }
  write_rotated(static_cast<attend_t*>(kv.k) + place, x, h.k_norm, turns, rope.block, dim);
}

void check_rows(const Tensor& rows) { CHECK(rows.dtype == DType::kI32 && rows.row_size() == 4 && rows.contiguous()); }

}  // namespace

void rope(cudaStream_t stream, Tensor x, Tensor pos, const Rope& rope_by) {
  CHECK(x.rank == 3);
  const int heads = static_cast<int>(x.shape[1]), dim = static_cast<int>(x.shape[2]);
  const RopeView by = view(rope_by, pos, dim);
  const int64_t work = x.rows() * heads * dim / 2;
  with_wider_type(x.dtype, [&](auto* xt) {
    using X = std::remove_pointer_t<decltype(xt)>;
    launch(stream, static_cast<unsigned>((work + 255) / 256), 256, 0, rope_kernel<X>, data<X>(x), x.stride, x.rows(),
           heads, dim, by);
  });
}

void kv_write(cudaStream_t stream, const KvView& kv, Tensor k, Tensor v, Tensor rows) {
  check_rows(rows);
  CHECK(k.dtype == v.dtype && k.row_size() == kv.heads * kv.dim && v.row_size() == k.row_size());
  CHECK(k.rows() == rows.rows());
  const int64_t work = k.rows() * kv.heads;
  with_type(k.dtype, [&](auto* xt) {
    using X = std::remove_pointer_t<decltype(xt)>;
    launch(stream, static_cast<unsigned>((work + kWarps - 1) / kWarps), kWarps * 32, 0, kv_write_kernel<X>, kv,
           data<X>(k), k.stride, data<X>(v), v.stride, data<int4>(rows), static_cast<int>(k.rows()));
  });
}

bool heads_fit(const Tensor& query, const Tensor& q, const Tensor& k, const Tensor& v) {
  const auto even = [&](const Tensor& t, DType type) {
    return t.dtype == type && reinterpret_cast<uintptr_t>(t.data) % (2 * dtype_size(type)) == 0 && t.stride % 2 == 0 &&
           t.rank == 3;
  };
  return even(query, kAttendType) && even(q, q.dtype) && even(k, q.dtype) && (!v || even(v, q.dtype)) &&
         q.shape[2] % 2 == 0 && q.shape[2] <= kDimMax;
}

void heads(cudaStream_t stream, Tensor query, Tensor q, Tensor k, Tensor v, const Backend::HeadNorms& norms, Tensor pos,
           const Rope& rope, const KvView& kv, Tensor rows) {
  check_rows(rows);
  const int dim = static_cast<int>(q.shape[2]), q_heads = static_cast<int>(q.shape[1]);
  CHECK(heads_fit(query, q, k, v) && query.shape == q.shape);
  CHECK(dim == kv.dim && k.shape[1] == kv.heads && k.shape[2] == dim);
  CHECK(norms.q.dtype == DType::kF32 && norms.q.size() == dim && norms.k.dtype == DType::kF32 && norms.k.size() == dim);
  const int items = q_heads + kv.heads * (v ? 2 : 1);
  with_type(q.dtype, [&](auto* xt) {
    using X = std::remove_pointer_t<decltype(xt)>;
    const HeadsView<X> h = {
        data<attend_t>(query), data<X>(q),           data<X>(k), data<X>(v), query.stride, q.stride, k.stride, v.stride,
        data<float>(norms.q),  data<float>(norms.k), q_heads,    dim,        norms.eps};
    launch(stream, dim3((items + kWarps - 1) / kWarps, static_cast<unsigned>(q.rows())), kWarps * 32, 0,
           heads_kernel<X>, h, view(rope, pos, dim), kv, data<int4>(rows));
  });
}

}  // namespace gemma4::cuda
