// The kernels of sample(): edits (bias, penalties, mask), the best 64 of each 4096 logits, and the choice among them.
#include <cuda_bf16.h>

#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/ops/sample.h"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kThreads = 1024;

// A logit and its id as one number that grows with the logit and, among equals, falls with the id.
__device__ __forceinline__ uint64_t rank_key(float logit, int id) {
  uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 and 0 are equal
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(~id);
}
__device__ __forceinline__ float key_logit(uint64_t key) {
  const uint32_t bits = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}
__device__ __forceinline__ int key_id(uint64_t key) { return static_cast<int>(~static_cast<uint32_t>(key)); }

__device__ __forceinline__ float raw_logit(const SampleCall& call, int row, int id) {
  const int64_t at = row * call.stride + id;
  return call.bf16 ? to_float(static_cast<const __nv_bfloat16*>(call.logits)[at])
                   : static_cast<const float*>(call.logits)[at];
}

// keys [kSampleBlock] in shared memory, largest first: a bitonic sort.
__device__ void sort_keys(uint64_t* keys) {
  for (int size = 2; size <= kSampleBlock; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < kSampleBlock / 2; i += kThreads) {
        const int low = i / step * 2 * step + i % step, high = low + step;
        const bool falling = (low & size) == 0;
        const uint64_t a = keys[low], b = keys[high];
        if ((a < b) == falling) keys[low] = b, keys[high] = a;
      }
    }
  }
  __syncthreads();
}

// Rows with edits: a changed copy of the logits. Grid: rows.
__global__ void edit_logits_kernel(SampleCall call) {
  grid_release();
  grid_wait();
  const int row = blockIdx.x;
  const SampleRow& params = call.params[row];
  if (params.edited < 0) return;
  float* out = call.edited + static_cast<int64_t>(params.edited) * call.vocab;
  const uint32_t* words = call.words;
  for (int id = threadIdx.x; id < call.vocab; id += kThreads) out[id] = raw_logit(call, row, id);
  __syncthreads();
  for (int i = params.bias_begin + 2 * threadIdx.x; i < params.bias_end; i += 2 * kThreads) {
    const int id = static_cast<int>(words[i]);
    if (id >= 0 && id < call.vocab) atomicAdd(out + id, __uint_as_float(words[i + 1]));
  }
  __syncthreads();
  for (int i = params.counts_begin + 2 * threadIdx.x; i < params.counts_end; i += 2 * kThreads) {
    const int id = static_cast<int>(words[i]), times = static_cast<int>(words[i + 1]);
    if (id < 0 || id >= call.vocab) continue;
    float x = out[id];
    x = x > 0 ? x / params.repetition_penalty : x * params.repetition_penalty;
    out[id] = x - (params.frequency_penalty * static_cast<float>(times) + (times > 0 ? params.presence_penalty : 0.0f));
  }
  __syncthreads();
  if (params.allowed_words == 0) return;
  for (int id = threadIdx.x; id < call.vocab; id += kThreads) {
    const bool allowed = id / 32 < params.allowed_words && (words[params.allowed_begin + id / 32] >> (id % 32) & 1);
    if (!allowed) out[id] = -INFINITY;
  }
}

// The best kSampleKept of a block's kSampleBlock logits, in order, and the sum of exp((logit - best) / temperature).
// Grid: (blocks, rows).
__global__ void sort_blocks_kernel(SampleCall call) {
  __shared__ uint64_t keys[kSampleBlock];
  __shared__ double sums[kThreads / 32];
  grid_release();
  grid_wait();
  const int row = blockIdx.y, begin = blockIdx.x * kSampleBlock;
  const SampleRow& params = call.params[row];
  const float* edited = params.edited < 0 ? nullptr : call.edited + static_cast<int64_t>(params.edited) * call.vocab;
  constexpr int kEach = kSampleBlock / kThreads;
  float mine[kEach];
  uint64_t top = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int id = begin + i * kThreads + threadIdx.x;
    const bool real = id < call.vocab;
    mine[i] = !real ? -INFINITY : edited ? edited[id] : raw_logit(call, row, id);
    const uint64_t key = real ? rank_key(mine[i], id) : 0;
    keys[i * kThreads + threadIdx.x] = key;
    top = key > top ? key : top;
  }
  uint64_t* best = call.best + (static_cast<int64_t>(row) * gridDim.x + blockIdx.x) * kSampleKept;
  if (params.greedy) {
    __syncthreads();
    keys[threadIdx.x] = top;
    for (int step = kThreads / 2; step > 0; step /= 2) {
      __syncthreads();
      if (threadIdx.x < step && keys[threadIdx.x + step] > keys[threadIdx.x]) {
        keys[threadIdx.x] = keys[threadIdx.x + step];
      }
    }
    if (threadIdx.x == 0) best[0] = keys[0];
    return;
  }
  sort_keys(keys);
  if (threadIdx.x < kSampleKept) best[threadIdx.x] = keys[threadIdx.x];
  if (!params.sum_all) return;
  const float highest = key_logit(keys[0]);
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (mine[i] > -INFINITY) sum += exp(static_cast<double>((mine[i] - highest) / params.temperature));
  }
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int i = 1; i < kThreads / 32; ++i) sum += sums[i];
  call.totals[static_cast<int64_t>(row) * gridDim.x + blockIdx.x] = sum;
}

// draw() of backend/sample.cc, with the best 64 as the candidates. Returns the id, or -1 where more are needed.
__device__ int draw(const SampleRow& params, const uint64_t* keys, const double* weights, double total_all) {
  const int most = params.top_k > 0 ? min(params.top_k, kSampleKept) : kSampleKept;
  int kept = 0;
  double total = 0;
  for (; kept < most && key_logit(keys[kept]) > -INFINITY; ++kept) total += weights[kept];
  if (kept == 0) return key_id(keys[0]);
  const bool whole = params.top_k > 0 ? params.top_k <= kSampleKept : kept < kSampleKept;  // no candidate is missing
  if (!whole && params.top_k > 0) return -1;
  if (params.top_k == 0) total = total_all;
  int count = 0;
  double sum = 0;
  while (count < kept && (count == 0 || (sum < total * params.top_p && weights[count] >= params.min_p))) {
    sum += weights[count++];
  }
  if (count == kept && !whole) {  // the cut may lie further on
    if (params.top_p < 1 || params.min_p > 0) return -1;
    sum = total_all;
  }
  double at = params.uniform * sum;
  for (int i = 0; i < count; ++i) {
    if (at < weights[i]) return key_id(keys[i]);
    at -= weights[i];
  }
  return count == kept && !whole ? -1 : key_id(keys[count - 1]);
}

// Grid: rows.
__global__ void sample_kernel(SampleCall call, int blocks) {
  __shared__ uint64_t keys[kSampleBlock];
  grid_release();
  grid_wait();
  const int row = blockIdx.x;
  const SampleRow& params = call.params[row];
  const uint64_t* best = call.best + static_cast<int64_t>(row) * blocks * kSampleKept;
  if (params.greedy) {
    if (threadIdx.x > 0) return;
    uint64_t top = best[0];
    for (int i = 1; i < blocks; ++i) top = best[i * kSampleKept] > top ? best[i * kSampleKept] : top;
    call.ids[row] = key_id(top);
    call.undecided[row] = 0;
    return;
  }
  for (int i = threadIdx.x; i < kSampleBlock; i += kThreads) keys[i] = i < blocks * kSampleKept ? best[i] : 0;
  sort_keys(keys);
  __shared__ double weights[kSampleKept];
  if (threadIdx.x < kSampleKept) {
    weights[threadIdx.x] =
        exp(static_cast<double>((key_logit(keys[threadIdx.x]) - key_logit(keys[0])) / params.temperature));
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  double total = 0;
  if (params.sum_all) {
    for (int i = 0; i < blocks; ++i) {
      const float top = key_logit(best[i * kSampleKept]);
      if (top == -INFINITY) continue;
      total += call.totals[static_cast<int64_t>(row) * blocks + i] *
               exp(static_cast<double>((top - key_logit(keys[0])) / params.temperature));
    }
  }
  const int id = draw(params, keys, weights, total);
  if (id >= 0) call.ids[row] = id;
  call.undecided[row] = id < 0;
}

}  // namespace

void launch_sample(cudaStream_t stream, const SampleCall& call, bool edits) {
  const int blocks = (call.vocab + kSampleBlock - 1) / kSampleBlock;
  if (edits) launch(stream, call.rows, kThreads, 0, edit_logits_kernel, call);
  launch(stream, dim3(blocks, call.rows), kThreads, 0, sort_blocks_kernel, call);
  launch(stream, call.rows, kThreads, 0, sample_kernel, call, blocks);
}

}  // namespace gemma4::cuda
