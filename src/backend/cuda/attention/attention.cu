// attend: which kernel serves which rows; and the simple kernel that serves every shape.
#include <vector>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/kv_cache.cuh"
#include "backend/cuda/device/element.cuh"
#include "backend/cuda/device/reduce.cuh"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

using bf16 = __nv_bfloat16;

constexpr int kWarps = 4;
constexpr int kPerLane = 512 / 32;

// K's element e of one compressed row: rotated elements as kept, the others V times K's norm weight.
__device__ __forceinline__ float key_element(const KvCacheView& kv, const attend_t* k, const attend_t* v, int e) {
  if (!kv.rotated) return to_float(k[kv_element(kv, e)]);
  const int at = kv_rotated_index(kv, e);
  return at >= 0 ? to_float(v[at]) : to_float(v[e]) * kv.k_norm[e];
}

// A block for (head, row). Each warp walks every fourth key with a running softmax; the four are merged at the end.
__global__ void simple_kernel(AttendCall call, KvCacheView kv) {
  __shared__ float maxima[kWarps], sums[kWarps];
  __shared__ float partial[kWarps][kPerLane * 32];
  grid_release();
  grid_wait();
  const int head = blockIdx.x, row = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int kv_head = head / (call.q_heads / kv.heads);
  const int4 see = reinterpret_cast<const int4*>(call.rows)[row];
  const attend_t* q = static_cast<const attend_t*>(call.q) + row * call.q_stride + head * kv.dim;
  float query[kPerLane], sum[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    query[i] = e < kv.dim ? to_float(q[e]) : 0.0f;
    sum[i] = 0;
  }
  float top = -INFINITY, total = 0;
  for (int pos = see.z + warp; pos <= see.w; pos += kWarps) {
    const int64_t place = kv_place(kv, see.x, pos, kv_head);
    const attend_t* v = static_cast<const attend_t*>(kv.v) + place;
    const attend_t* k = kv.rotated ? nullptr : static_cast<const attend_t*>(kv.k) + place;
    float score = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int e = lane + 32 * i;
      if (e < kv.dim) score += query[i] * key_element(kv, k, v, e);
    }
    score = warp_sum(score);
    const float higher = fmaxf(top, score), keep = expf(top - higher), weight = expf(score - higher);
    top = higher;
    total = total * keep + weight;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int e = lane + 32 * i;
      if (e < kv.dim) sum[i] = sum[i] * keep + weight * to_float(v[kv_element(kv, e)]);
    }
  }
  if (lane == 0) maxima[warp] = top, sums[warp] = total;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) partial[warp][lane + 32 * i] = sum[i];
  __syncthreads();
  float highest = -INFINITY, denominator = 0;
  for (int w = 0; w < kWarps; ++w) highest = fmaxf(highest, maxima[w]);
  for (int w = 0; w < kWarps; ++w) denominator += sums[w] > 0 ? sums[w] * expf(maxima[w] - highest) : 0.0f;
  bf16* out = static_cast<bf16*>(call.out) + row * call.out_stride + head * kv.dim;
  for (int e = threadIdx.x; e < kv.dim; e += blockDim.x) {
    float value = 0;
    for (int w = 0; w < kWarps; ++w) value += sums[w] > 0 ? partial[w][e] * expf(maxima[w] - highest) : 0.0f;
    out[e] = __float2bfloat16_rn(denominator > 0 ? value / denominator : 0.0f);
  }
}

// Rows begin .. end-1 go to one kernel.
struct Part {
  int begin, end;
  bool few;  // to the decode kernel
};

constexpr int kFewRows = 8;    // rows in a row of one sequence that the decode kernel takes
constexpr int kFewTotal = 64;  // and altogether

// Runs of many rows of one sequence go to the prefill kernel, single rows to the decode kernel.
std::vector<Part> partition(std::span<const Row> rows) {
  std::vector<Part> parts;
  const int count = static_cast<int>(rows.size());
  for (int begin = 0; begin < count;) {
    int end = begin + 1;
    while (end < count && rows[end].seq == rows[begin].seq) ++end;
    const bool few = end - begin <= kFewRows;
    if (!parts.empty() && parts.back().few == few && (!few || end - parts.back().begin <= kFewTotal)) {
      parts.back().end = end;
    } else {
      parts.push_back({begin, end, few});
    }
    begin = end;
  }
  return parts;
}

}  // namespace

void attend_simple(cudaStream_t stream, const AttendCall& call, const KvCacheView& kv) {
  launch(stream, dim3(call.q_heads, call.count), kWarps * 32, 0, simple_kernel, call, kv);
}

void attention(cudaStream_t stream, Tensor out, Tensor q, const KvCacheView& kv, Tensor rows, std::span<const Row> host,
               const AttendScratch& scratch) {
  CHECK(q.rank == 3 && q.dtype == kAttendType && out.dtype == DType::kBF16 && out.rows() == q.rows());
  CHECK(q.shape[2] == kv.dim && q.shape[1] % kv.heads == 0 && kv.dim <= kPerLane * 32);
  CHECK(rows.dtype == DType::kI32 && rows.contiguous() && rows.rows() >= q.rows());
  const int count = static_cast<int>(q.rows());
  std::vector<Part> parts;
  if (host.size() == static_cast<size_t>(count) && count > kFewRows) {
    parts = partition(host);
  } else {  // a captured graph serves other rows later: go by the count alone
    parts = {{0, count, count <= kFewTotal}};
  }
  for (const Part& part : parts) {
    const AttendCall call = {
        out.row<bf16>(part.begin), q.row<attend_t>(part.begin), rows.row<int32_t>(part.begin), out.stride, q.stride,
        part.end - part.begin,     static_cast<int>(q.shape[1])};
    if (part.few && decode_fits(call, kv, scratch)) {
      attend_decode(stream, call, kv, scratch);
    } else if (scratch.warpgroups && vision_fits(call, kv)) {
      attend_vision(stream, call, kv, scratch.multiprocessors);
    } else if (!scratch.warpgroups || !prefill_fits(call, kv)) {
      attend_simple(stream, call, kv);
    } else if (kv.dim == 512) {
      attend_prefill_wide(stream, call, kv);
    } else {
      attend_prefill(stream, call, kv);
    }
  }
}

}  // namespace gemma4::cuda
