// rope, kv_write, and qk_norm_rope_cache: the norms of q, k and v, RoPE and the cache write of one layer in one launch.
// Three kernels: one for any head size, one for the text's head sizes, one for the vision tower's.
#include "backend/cuda/attention/kv_cache.cuh"
#include "backend/cuda/attention/qk_norm_rope_cache.h"
#include "backend/cuda/device/element.cuh"
#include "backend/cuda/device/reduce.cuh"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kWarps = 8;  // of a CTA
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
__device__ __forceinline__ float2 cos_sin(const RopeView& rope, int64_t row, int i) {
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
  const float2 t = cos_sin(rope, row, pair);
  T* a = x + row * stride + head * dim + pair / half * rope.block + pair % half;
  const float low = to_float(a[0]), high = to_float(a[half]);
  a[0] = from_float<T>(low * t.x - high * t.y);
  a[half] = from_float<T>(high * t.x + low * t.y);
}

// One warp for each (row, head).
template <typename X>
__global__ void kv_write_kernel(KvCacheView kv, const X* k, int64_t k_stride, const X* v, int64_t v_stride,
                                const int4* rows, int count) {
  grid_release();
  grid_wait();
  const int index = blockIdx.x * kWarps + threadIdx.x / 32;
  if (index >= count * kv.heads) return;
  const int row = index / kv.heads, head = index % kv.heads;
  const int64_t offset = kv_offset(kv, rows[row].x, rows[row].y, head);
  k += row * k_stride + head * kv.dim;
  v += row * v_stride + head * kv.dim;
  attention_t* to_v = static_cast<attention_t*>(kv.v) + offset;
  attention_t* to_k = kv.rotated ? nullptr : static_cast<attention_t*>(kv.k) + offset;
  for (int e = threadIdx.x % 32; e < kv.dim; e += 32) {
    to_v[kv_element(kv, e)] = from_float<attention_t>(to_float(v[e]));
    const attention_t key = from_float<attention_t>(to_float(k[e]));
    if (to_k) {
      to_k[kv_element(kv, e)] = key;
    } else if (const int at = kv_rotated_index(kv, e); at >= 0) {
      to_v[at] = key;
    }
  }
}

template <typename X>
struct QkvView {
  attention_t* query;
  const X *q, *k, *v;  // v null: V is K before K's norm
  int64_t query_stride, q_stride, k_stride, v_stride;
  const float *q_norm, *k_norm;
  int q_heads, dim;
  float eps;
};

__device__ __forceinline__ float2 load2(const float* from) { return *reinterpret_cast<const float2*>(from); }
__device__ __forceinline__ float2 load2(const __nv_bfloat16* from) {
  return unpack_bf16x2(*reinterpret_cast<const uint32_t*>(from));
}

// Writes the warp's head, divided by its RMS, to `x` (shared memory, [dim]).
template <typename X>
__device__ __forceinline__ void rms_normalize(float* x, const X* from, int dim, float eps) {
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

// Element e of the head in `x`, times `weight`, rotated by `angles` (cosine and sine) [dim / 2].
__device__ __forceinline__ float rotated(const float* x, const float* weight, const float2* angles, int block, int e) {
  const int half = block / 2, i = e % block;
  const bool low = i < half;
  const int partner = low ? e + half : e - half;
  const float2 t = angles[e / block * half + (low ? i : i - half)];
  const float other = x[partner] * weight[partner];
  return x[e] * weight[e] * t.x + (low ? -other : other) * t.y;
}

// Writes the whole head, rotated, to `to`. Element e goes to index_of(e).
template <typename IndexOf>
__device__ __forceinline__ void write_rotated(attention_t* to, const float* x, const float* weight,
                                              const float2* angles, int block, int dim, const IndexOf& index_of) {
  for (int e = threadIdx.x % 32 * 2; e < dim; e += 64) {
    *reinterpret_cast<uint32_t*>(to + index_of(e)) =
        pack_attention(rotated(x, weight, angles, block, e), rotated(x, weight, angles, block, e + 1));
  }
}

// Any head size. A warp for each head, a CTA for kWarps heads of one row. The order of heads: q, k, v.
template <typename X>
__global__ void qk_norm_rope_cache_naive_kernel(QkvView<X> h, RopeView rope, KvCacheView kv, const int4* rows) {
  __shared__ float2 angles[kDimMax / 2];
  __shared__ float values[kWarps][kDimMax];
  grid_release();
  const int row = blockIdx.y, lane = threadIdx.x % 32;
  const int index = blockIdx.x * kWarps + threadIdx.x / 32;
  const int dim = h.dim;
  grid_wait();
  for (int i = threadIdx.x; i < dim / 2; i += blockDim.x) angles[i] = cos_sin(rope, row, i);
  __syncthreads();
  float* x = values[threadIdx.x / 32];
  if (index < h.q_heads) {
    rms_normalize(x, h.q + row * h.q_stride + index * dim, dim, h.eps);
    return write_rotated(h.query + row * h.query_stride + index * dim, x, h.q_norm, angles, rope.block, dim,
                         [](int e) { return e; });
  }
  const int head = (index - h.q_heads) % kv.heads, tensor = (index - h.q_heads) / kv.heads;  // 0: k, 1: v
  if (tensor >= (h.v ? 2 : 1)) return;
  const int64_t offset = kv_offset(kv, rows[row].x, rows[row].y, head);
  attention_t* to_v = static_cast<attention_t*>(kv.v) + offset;
  rms_normalize(x, tensor ? h.v + row * h.v_stride + head * dim : h.k + row * h.k_stride + head * dim, dim, h.eps);
  if (tensor == 1 || !h.v) {
    for (int e = lane * 2; e < dim; e += 64) {
      *reinterpret_cast<uint32_t*>(to_v + kv_element(kv, e)) = pack_attention(x[e], x[e + 1]);
    }
  }
  if (tensor == 1) return;
  if (kv.rotated) {
    for (int i = lane; i < 2 * kv.rotated; i += 32) {
      const int e = i < kv.rotated ? i : dim / 2 + i - kv.rotated;
      to_v[dim + i] = from_float<attention_t>(rotated(x, h.k_norm, angles, rope.block, e));
    }
    return;
  }
  write_rotated(static_cast<attention_t*>(kv.k) + offset, x, h.k_norm, angles, rope.block, dim,
                [&](int e) { return kv_element(kv, e); });
}

// The text's head sizes, with one RoPE block for each head. A lane holds 8 elements and the 8 that they pair with, so a
// head has kDim / 16 lanes. A CTA computes the cosines and sines of its kRows rows once. HBM bandwidth bounds the
// speed.
template <int kDim_>
struct TextHeads {
  static constexpr int kDim = kDim_, kHalf = kDim / 2, kLanes = kDim / 16;
  static constexpr int kHeads = 32 / kLanes;           // that a warp processes at a time
  static constexpr int kBlocks = kDim == 512 ? 3 : 4;  // CTAs on an SM: as many as the registers allow
};

template <typename S>
__device__ __forceinline__ void store_head(attention_t* to, int at, const float (&low)[8], const float (&high)[8]) {
  store8(to + at, low);
  store8(to + S::kHalf + at, high);
}

// Multiplies by `weight` [kDim], then rotates by `angles` [kHalf].
template <typename S>
__device__ __forceinline__ void rotate(float (&low)[8], float (&high)[8], const float* weight, const float2* angles,
                                       int at) {
  float w_low[8], w_high[8];
  load8(weight + at, w_low);
  load8(weight + S::kHalf + at, w_high);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float a = low[i] * w_low[i], b = high[i] * w_high[i];
    const float2 t = angles[at + i];
    low[i] = a * t.x - b * t.y;
    high[i] = b * t.x + a * t.y;
  }
}

// One head: norm, rotation, and the write to the query or to the cache.
template <typename S, typename X>
__device__ __forceinline__ void finish_head(float (&low)[8], float (&high)[8], const QkvView<X>& h,
                                            const KvCacheView& kv, const int4* rows, int row, int head, int at,
                                            const float2* angles) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) squares += low[i] * low[i] + high[i] * high[i];
#pragma unroll
  for (int mask = S::kLanes / 2; mask > 0; mask /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, mask);
  const float factor = rsqrtf(squares / S::kDim + h.eps);
#pragma unroll
  for (int i = 0; i < 8; ++i) low[i] *= factor, high[i] *= factor;
  if (head < 0) return;  // a lane without a head
  if (head < h.q_heads) {
    rotate<S>(low, high, h.q_norm, angles, at);
    return store_head<S>(h.query + row * h.query_stride + head * S::kDim, at, low, high);
  }
  const bool is_v = head >= h.q_heads + kv.heads;
  const int64_t offset = kv_offset(kv, rows[row].x, rows[row].y, head - h.q_heads - (is_v ? kv.heads : 0));
  attention_t* to_v = static_cast<attention_t*>(kv.v) + offset;
  if (is_v || !h.v) store_head<S>(to_v, at, low, high);
  if (is_v) return;
  rotate<S>(low, high, h.k_norm, angles, at);
  if (!kv.rotated) return store_head<S>(static_cast<attention_t*>(kv.k) + offset, at, low, high);
  if (at >= kv.rotated) return;
  store8(to_v + S::kDim + at, low);
  store8(to_v + S::kDim + kv.rotated + at, high);
}

template <typename X>
__device__ __forceinline__ const X* head_of(const QkvView<X>& h, int kv_heads, int64_t row, int head) {
  if (head < h.q_heads) return h.q + row * h.q_stride + head * h.dim;
  head -= h.q_heads;
  if (head < kv_heads) return h.k + row * h.k_stride + head * h.dim;
  return h.v + row * h.v_stride + (head - kv_heads) * h.dim;
}

// A CTA for kRows rows. With several CTAs in x, each takes some of the heads of these rows.
template <typename S, int kRows, typename X>
__global__ void __launch_bounds__(kWarps * 32, sizeof(X) == 2 ? S::kBlocks : 2)
    qk_norm_rope_cache_kernel(QkvView<X> h, RopeView rope, KvCacheView kv, const int4* rows, int count) {
  __shared__ float2 angles[kRows * S::kHalf];
  grid_release();
  const int lane = threadIdx.x % 32, at = lane % S::kLanes * 8, row0 = blockIdx.y * kRows;
  const int heads = h.q_heads + kv.heads * (h.v ? 2 : 1), items = min(kRows, count - row0) * heads;
  const int step = gridDim.x * kWarps * S::kHeads;
  const int first = (blockIdx.x * kWarps + threadIdx.x / 32) * S::kHeads;
  constexpr int kLoads = sizeof(X) / 2;  // of 16 bytes, for eight elements
  uint4 next_low[kLoads] = {}, next_high[kLoads] = {};
  const auto load = [&](int item) {
    if (item >= items) return;
    const X* from = head_of(h, kv.heads, row0 + item / heads, item % heads) + at;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      next_low[i] = reinterpret_cast<const uint4*>(from)[i];
      next_high[i] = reinterpret_cast<const uint4*>(from + S::kHalf)[i];
    }
  };
  grid_wait();
  load(first + lane / S::kLanes);  // in flight while the angles are computed
  for (int i = threadIdx.x; i < kRows * S::kHalf; i += kWarps * 32) {
    if (row0 + i / S::kHalf < count) angles[i] = cos_sin(rope, row0 + i / S::kHalf, i % S::kHalf);
  }
  __syncthreads();
  for (int begin = first; begin < items; begin += step) {
    const int item = begin + lane / S::kLanes, within = item < items ? item / heads : 0;
    float low[8], high[8];
    load8(reinterpret_cast<const X*>(next_low), low);
    load8(reinterpret_cast<const X*>(next_high), high);
    load(item + step);
    finish_head<S>(low, high, h, kv, rows, row0 + within, item < items ? item % heads : -1, at,
                   angles + within * S::kHalf);
  }
}

// With many rows a CTA takes several of them, which saves sines. With few rows a CTA takes a few heads of one row,
// which gives more CTAs.
template <typename S, typename X>
bool launch_text(cudaStream_t stream, const QkvView<X>& h, const RopeView& rope, const KvCacheView& kv,
                 const int4* rows, int count) {
  constexpr int kMany = 512, kRows = 4;
  if (h.dim != S::kDim || rope.block != S::kDim || kv.rotated % 8 != 0 || kv.row % 8 != 0 || kv.tiled) return false;
  const int heads = h.q_heads + kv.heads * (h.v ? 2 : 1), at_once = kWarps * S::kHeads;
  if (count >= kMany) {
    launch(stream, dim3(1, (count + kRows - 1) / kRows), kWarps * 32, 0, qk_norm_rope_cache_kernel<S, kRows, X>, h,
           rope, kv, rows, count);
  } else {
    launch(stream, dim3((heads + at_once - 1) / at_once, count), kWarps * 32, 0, qk_norm_rope_cache_kernel<S, 1, X>, h,
           rope, kv, rows, count);
  }
  return true;
}

// The vision tower's heads of 72 (two RoPE blocks of 36). A thread holds a whole head, as 36 words of two elements,
// since 72 elements do not divide evenly among lanes. The lanes of a warp are 8 rows of 4 heads, so they write whole
// lines of a tiled cache.
struct VisionHeads {
  static constexpr int kDim = 72, kBlock = 36, kPairs = kDim / 2, kWords = kDim / 2;
  static constexpr int kRows = 8, kHeads = 16, kThreads = kRows * kHeads;  // of a CTA
  static constexpr int kPitch = kPairs + 1;  // of angles in shared memory; rows begin in different banks
};

// Multiplies by `weight` and rotates; bfloat16 in, attention_t out. Words w and w + 9 pair with each other, for the
// first nine words of each RoPE block.
__device__ __forceinline__ void rotate_words(uint32_t (&words)[VisionHeads::kWords], float factor, const float* weight,
                                             const float2* angles) {
  constexpr int kHalf = VisionHeads::kBlock / 4;  // in words
#pragma unroll
  for (int block = 0; block < 2; ++block) {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const int w = block * 2 * kHalf + i;
      const float2 low = unpack_bf16x2(words[w]), high = unpack_bf16x2(words[w + kHalf]);
      const float2 w_low = reinterpret_cast<const float2*>(weight)[w];
      const float2 w_high = reinterpret_cast<const float2*>(weight)[w + kHalf];
      const float2 t = angles[block * 2 * kHalf + 2 * i], u = angles[block * 2 * kHalf + 2 * i + 1];
      const float a = low.x * factor * w_low.x, b = high.x * factor * w_high.x;
      const float c = low.y * factor * w_low.y, d = high.y * factor * w_high.y;
      words[w] = pack_attention(a * t.x - b * t.y, c * u.x - d * u.y);
      words[w + kHalf] = pack_attention(b * t.x + a * t.y, d * u.x + c * u.y);
    }
  }
}

__global__ void __launch_bounds__(VisionHeads::kThreads, 4)
    qk_norm_rope_cache_vision_kernel(QkvView<__nv_bfloat16> h, RopeView rope, KvCacheView kv, const int4* rows,
                                     int count) {
  using S = VisionHeads;
  __shared__ float2 angles[S::kRows * S::kPitch];
  __shared__ __align__(8) float weight[2][S::kDim];
  grid_release();
  for (int i = threadIdx.x; i < 2 * S::kDim;
       i += S::kThreads) {  // read before grid_wait(), since no kernel writes them
    weight[i / S::kDim][i % S::kDim] = (i < S::kDim ? h.q_norm : h.k_norm)[i % S::kDim];
  }
  grid_wait();
  const int row0 = blockIdx.x * S::kRows, within = threadIdx.x % S::kRows, row = row0 + within;
  const int head = blockIdx.y * S::kHeads + threadIdx.x / S::kRows, heads = h.q_heads + kv.heads * 2;
  const bool mine = row < count && head < heads, is_q = head < h.q_heads, is_v = head >= h.q_heads + kv.heads;
  uint32_t words[S::kWords];
  if (mine) {
    const auto* from = reinterpret_cast<const uint4*>(head_of(h, kv.heads, row, head));
#pragma unroll
    for (int i = 0; i < S::kWords / 4; ++i) {
      const uint4 vec = from[i];
      words[4 * i] = vec.x, words[4 * i + 1] = vec.y, words[4 * i + 2] = vec.z, words[4 * i + 3] = vec.w;
    }
  }
  if (blockIdx.y * S::kHeads < h.q_heads + kv.heads) {  // otherwise all heads of the CTA are v's, which do not rotate
    for (int i = threadIdx.x; i < S::kRows * S::kPairs; i += S::kThreads) {
      const int r = i / S::kPairs;
      if (row0 + r < count) angles[r * S::kPitch + i % S::kPairs] = cos_sin(rope, row0 + r, i % S::kPairs);
    }
  }
  __syncthreads();
  if (!mine) return;
  float squares = 0;
#pragma unroll
  for (int w = 0; w < S::kWords; ++w) {
    const float2 pair = unpack_bf16x2(words[w]);
    squares += pair.x * pair.x + pair.y * pair.y;
  }
  const float factor = rsqrtf(squares / S::kDim + h.eps);
  if (is_v) {
#pragma unroll
    for (int w = 0; w < S::kWords; ++w) {
      const float2 pair = unpack_bf16x2(words[w]);
      words[w] = pack_attention(pair.x * factor, pair.y * factor);
    }
  } else {
    rotate_words(words, factor, weight[is_q ? 0 : 1], angles + within * S::kPitch);
  }
  attention_t* to = h.query + row * h.query_stride + head * S::kDim;
  if (!is_q) {
    const int64_t offset = kv_offset(kv, rows[row].x, rows[row].y, head - h.q_heads - (is_v ? kv.heads : 0));
    to = static_cast<attention_t*>(is_v ? kv.v : kv.k) + offset;
  }
  const int step = !is_q && kv.tiled ? 64 : 8;  // elements between vectors
#pragma unroll
  for (int i = 0; i < S::kWords / 4; ++i) {
    *reinterpret_cast<uint4*>(to + i * step) =
        make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
  }
}

bool launch_vision(cudaStream_t stream, const QkvView<__nv_bfloat16>& h, const RopeView& rope, const KvCacheView& kv,
                   const int4* rows, int count) {
  using S = VisionHeads;
  if (h.dim != S::kDim || rope.block != S::kBlock || !h.v || kv.rotated) return false;
  const int heads = h.q_heads + kv.heads * 2;
  launch(stream, dim3((count + S::kRows - 1) / S::kRows, (heads + S::kHeads - 1) / S::kHeads), S::kThreads, 0,
         qk_norm_rope_cache_vision_kernel, h, rope, kv, rows, count);
  return true;
}

// Whether the text and vision kernels can read 16 bytes everywhere.
bool aligned_heads(const Tensor& q, const Tensor& k, const Tensor& v, const Backend::QkNorms& norms) {
  return aligned8(q) && aligned8(k) && (!v || aligned8(v)) && reinterpret_cast<uintptr_t>(norms.q.data) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(norms.k.data) % 16 == 0;
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

void kv_write(cudaStream_t stream, const KvCacheView& kv, Tensor k, Tensor v, Tensor rows) {
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

bool qk_norm_rope_cache_fits(const Tensor& query, const Tensor& q, const Tensor& k, const Tensor& v) {
  const auto even = [&](const Tensor& t, DType type) {
    return t.dtype == type && reinterpret_cast<uintptr_t>(t.data) % (2 * dtype_size(type)) == 0 && t.stride % 2 == 0 &&
           t.rank == 3;
  };
  return even(query, kAttentionType) && even(q, q.dtype) && even(k, q.dtype) && (!v || even(v, q.dtype)) &&
         q.shape[2] % 2 == 0 && q.shape[2] <= kDimMax;
}

void qk_norm_rope_cache(cudaStream_t stream, Tensor query, Tensor q, Tensor k, Tensor v, const Backend::QkNorms& norms,
                        Tensor pos, const Rope& rope, const KvCacheView& kv, Tensor rows) {
  check_rows(rows);
  const int dim = static_cast<int>(q.shape[2]), q_heads = static_cast<int>(q.shape[1]);
  CHECK(qk_norm_rope_cache_fits(query, q, k, v) && query.shape == q.shape);
  CHECK(dim == kv.dim && k.shape[1] == kv.heads && k.shape[2] == dim);
  CHECK(norms.q.dtype == DType::kF32 && norms.q.size() == dim && norms.k.dtype == DType::kF32 && norms.k.size() == dim);
  const RopeView by = view(rope, pos, dim);
  const int4* where = data<int4>(rows);
  const int items = q_heads + kv.heads * (v ? 2 : 1), count = static_cast<int>(q.rows());
  with_type(q.dtype, [&](auto* xt) {
    using X = std::remove_pointer_t<decltype(xt)>;
    const QkvView<X> h = {data<attention_t>(query),
                          data<X>(q),
                          data<X>(k),
                          data<X>(v),
                          query.stride,
                          q.stride,
                          k.stride,
                          v.stride,
                          data<float>(norms.q),
                          data<float>(norms.k),
                          q_heads,
                          dim,
                          norms.eps};
    if (aligned8(query) && aligned_heads(q, k, v, norms)) {
      if constexpr (sizeof(X) == 2) {
        if (launch_vision(stream, h, by, kv, where, count)) return;
      }
      if (launch_text<TextHeads<256>>(stream, h, by, kv, where, count)) return;
      if (launch_text<TextHeads<512>>(stream, h, by, kv, where, count)) return;
    }
    launch(stream, dim3((items + kWarps - 1) / kWarps, static_cast<unsigned>(count)), kWarps * 32, 0,
           qk_norm_rope_cache_naive_kernel<X>, h, by, kv, where);
  });
}

}  // namespace gemma4::cuda
