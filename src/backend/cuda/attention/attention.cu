// attention(): chooses a kernel for each range of rows; and attention_naive_kernel, which takes every shape.
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

// Element e of a key. A compressed row keeps the rotated elements; each other one is V's element times K's norm weight.
__device__ __forceinline__ float key_element(const KvCacheView& kv, const attention_t* k, const attention_t* v, int e) {
  if (!kv.rotated) return to_float(k[kv_element(kv, e)]);
  const int at = kv_rotated_index(kv, e);
  return at >= 0 ? to_float(v[at]) : to_float(v[e]) * kv.k_norm[e];
}

// A CTA for each (head, row). Each warp takes every fourth key with an online softmax; the four are merged at the end.
__global__ void attention_naive_kernel(AttentionCall call, KvCacheView kv) {
  __shared__ float maxima[kWarps], sums[kWarps];
  __shared__ float partial[kWarps][kPerLane * 32];
  grid_release();
  grid_wait();
  const int head = blockIdx.x, row = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int kv_head = head / (call.q_heads / kv.heads);
  const int4 row_mask = reinterpret_cast<const int4*>(call.rows)[row];
  const attention_t* q = static_cast<const attention_t*>(call.q) + row * call.q_stride + head * kv.dim;
  float query[kPerLane], sum[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    query[i] = e < kv.dim ? to_float(q[e]) : 0.0f;
    sum[i] = 0;
  }
  float top = -INFINITY, total = 0;
  for (int pos = row_mask.z + warp; pos <= row_mask.w; pos += kWarps) {
    const int64_t offset = kv_offset(kv, row_mask.x, pos, kv_head);
    const attention_t* v = static_cast<const attention_t*>(kv.v) + offset;
    const attention_t* k = kv.rotated ? nullptr : static_cast<const attention_t*>(kv.k) + offset;
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
  if (lane == 0) {
    maxima[warp] = top;
    sums[warp] = total;
  }
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

// Rows begin .. end-1, which one kernel serves.
struct RowRange {
  int begin, end;
  bool few;  // for flash_decode
};

constexpr int kFewRows = 8;    // consecutive rows of one sequence that flash_decode takes at most
constexpr int kFewTotal = 64;  // rows that it takes at most in one launch

// More than kFewRows consecutive rows of one sequence go to a prefill kernel, fewer to flash_decode.
std::vector<RowRange> split_rows(std::span<const Row> rows) {
  std::vector<RowRange> ranges;
  const int count = static_cast<int>(rows.size());
  for (int begin = 0; begin < count;) {
    int end = begin + 1;
    while (end < count && rows[end].seq == rows[begin].seq) ++end;
    const bool few = end - begin <= kFewRows;
    if (!ranges.empty() && ranges.back().few == few && (!few || end - ranges.back().begin <= kFewTotal)) {
      ranges.back().end = end;
    } else {
      ranges.push_back({begin, end, few});
    }
    begin = end;
  }
  return ranges;
}

}  // namespace

void attention_naive(cudaStream_t stream, const AttentionCall& call, const KvCacheView& kv) {
  launch(stream, dim3(call.q_heads, call.count), kWarps * 32, 0, attention_naive_kernel, call, kv);
}

void attention(cudaStream_t stream, Tensor out, Tensor q, const KvCacheView& kv, Tensor rows, std::span<const Row> host,
               const AttentionWorkspace& workspace) {
  CHECK(q.rank == 3 && q.dtype == kAttentionType && out.dtype == DType::kBF16 && out.rows() == q.rows());
  CHECK(q.shape[2] == kv.dim && q.shape[1] % kv.heads == 0 && kv.dim <= kPerLane * 32);
  CHECK(rows.dtype == DType::kI32 && rows.contiguous() && rows.rows() >= q.rows());
  const int count = static_cast<int>(q.rows());
  std::vector<RowRange> ranges;
  if (host.size() == static_cast<size_t>(count) && count > kFewRows) {
    ranges = split_rows(host);
  } else {  // a captured graph is replayed with other rows: only their number is known
    ranges = {{0, count, count <= kFewTotal}};
  }
  for (const RowRange& range : ranges) {
    const AttentionCall call = {out.row<bf16>(range.begin),
                                q.row<attention_t>(range.begin),
                                rows.row<int32_t>(range.begin),
                                out.stride,
                                q.stride,
                                range.end - range.begin,
                                static_cast<int>(q.shape[1])};
    if (range.few && flash_decode_fits(call, kv, workspace)) {
      flash_decode(stream, call, kv, workspace);
    } else if (!workspace.has_wgmma && flash_prefill_mma_fits(call, kv)) {
      flash_prefill_mma(stream, call, kv);
    } else if (workspace.has_wgmma && flash_vision_fits(call, kv)) {
      flash_vision(stream, call, kv, workspace.sms);
    } else if (!workspace.has_wgmma || !flash_prefill_fits(call, kv)) {
      attention_naive(stream, call, kv);
    } else if (kv.dim == 512) {
      flash_prefill_d512(stream, call, kv);
    } else {
      flash_prefill(stream, call, kv);
    }
  }
}

}  // namespace gemma4::cuda
