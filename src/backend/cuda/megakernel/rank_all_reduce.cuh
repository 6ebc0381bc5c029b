// The all-reduces of the decode megakernel: GEMVs send this rank's input, norms receive the sum.
//
// Every rank sends its input to every rank's receive buffer, and each adds them up for itself. All-reduces alternate
// between the two halves of a buffer: a norm reads all-reduce n while n + 1 arrives, but n + 2 only arrives after every
// CTA of every rank has sent its input to n + 1, and so has read n. With one rank the GEMVs and norms use a receive
// buffer too, because waiting for flagged values is faster than waiting for all CTAs.
#pragma once

#include "backend/cuda/megakernel/flagged_memory.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
struct RankAllReduce {
  const RankBuffers& ranks;
  Epochs epochs;
  __device__ __forceinline__ uint32_t* receive_buffer(int to, int from, uint32_t epoch) const {
    return ranks.receive[to] + ((epoch & 1) * ranks.world + from) * kResidualDimMax;
  }
  __device__ __forceinline__ bool aborted(int polls) const {  // rarely, because host memory is far away
    return polls % 4096 == 0 && ranks.aborted && *ranks.aborted;
  }

  // Sends a warp's 16 values, from row `row` on, to every rank: lane 4 g + c, c < 2, has that of row g + 8 c in
  // `value`. Four lanes write to one rank, four rows each.
  __device__ __forceinline__ void send(int all_reduce, int row, float value, int lane) const {
    const uint32_t epoch = epochs.of_all_reduce(all_reduce);
    const int to = lane / 4, quarter = lane % 4, first = quarter % 2 * 16 + quarter / 2;
    float four[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = __shfl_sync(0xffffffffu, value, first + 4 * i);
    if (to >= ranks.world) return;
    store_flagged(receive_buffer(to, ranks.rank, epoch) + flagged_offset(row + quarter * 4),
                  make_float4(four[0], four[1], four[2], four[3]), epoch);
  }

  // On one GPU, for a whole warp: waits until values i .. i + 3, a sample of all, are ready. One lane polls: if all
  // threads of all CTAs did, they would take bandwidth from the weights. Several GPUs have bandwidth to spare.
  __device__ __forceinline__ void wait(int all_reduce, int i) const {
    if (ranks.world > 1) return;
    const uint32_t epoch = epochs.of_all_reduce(all_reduce);
    if (threadIdx.x % 32 == 0) {
      const uint32_t* at = receive_buffer(0, 0, epoch) + i;
      while (!ready(poll(at), epoch)) {
      }
    }
    __syncwarp();
  }

  // y[pass] += the sum over the ranks, in rank order, of values o .. o + 3 and o + 8 .. o + 11, o = offsets[pass]. Two
  // ranks at a time. Gives up once the group has ended.
  template <int kPasses>
  __device__ __forceinline__ void receive(int all_reduce, const int (&offsets)[kPasses], float (&y)[kPasses][8]) const {
    int from = 0;
#pragma unroll 1
    for (; from + 2 <= ranks.world; from += 2) receive_ranks<2>(all_reduce, from, offsets, y);
    if (from < ranks.world) receive_ranks<1>(all_reduce, from, offsets, y);
  }
  template <int kRanks, int kPasses>
  __device__ __forceinline__ void receive_ranks(int all_reduce, int from, const int (&offsets)[kPasses],
                                                float (&y)[kPasses][8]) const {
    constexpr int kEach = 2 * kPasses;  // vectors of a rank
    const uint32_t epoch = epochs.of_all_reduce(all_reduce);
    const uint32_t* buffer = receive_buffer(ranks.rank, from, epoch);
    uint4 flagged[kRanks * kEach];
    const auto address = [&](int i) {
      return buffer + i / kEach * kResidualDimMax + flagged_offset(offsets[i % kEach / 2]) + i % 2 * kSecondVector;
    };
    spin_wait(address, epoch, flagged, [&](int polls) { return aborted(polls); });
#pragma unroll
    for (int i = 0; i < kRanks * kEach; ++i) add_values(flagged[i], y[i % kEach / 2] + i % 2 * 4);
  }
};
#endif

}  // namespace gemma4::cuda
