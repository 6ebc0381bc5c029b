// How values pass from block to block of the step kernel, and from GPU to GPU.
//
// As words: a float32 gives its two lowest bits to a number, that of its use of the region, modulo 4. A reader asks
// until it finds the number it expects, so what it waits for is the value itself: no fence before, no second trip to
// memory after. All words of a region are written at each use, so what is there before carries the number before; and
// between two uses every block met every other, by a GridBarrier or by a norm, which needs values of all blocks
// (step.cc sees to both). Nothing else has to be ordered.
#pragma once

#include "backend/cuda/megakernel/pipeline.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// All blocks: arrive() says that this block's writes are done, wait() returns when all blocks' are, and visible.
struct GridBarrier {
  unsigned* word;
  unsigned target = 0;
  __device__ __forceinline__ void arrive() {
    compute_barrier();  // the release below covers what the barrier made this thread see
    if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(word) : "memory");
    target += gridDim.x;
  }
  __device__ __forceinline__ void wait() const {
    if (target > 0 && threadIdx.x == 0) {
      unsigned seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(word) : "memory");
      } while (seen < target);
    }
    compute_barrier();
  }
};

// Uses of each region in earlier steps, then operations.
struct Numbers {
  const uint32_t* before;  // [kStepRegions + 1]
  __device__ __forceinline__ uint32_t of(const StepWords& words) const { return before[words.region] + words.turn; }
  __device__ __forceinline__ uint32_t of_sum(int turn) const { return before[0] + turn; }
  __device__ __forceinline__ uint32_t of_op(int index) const { return of_op(before[kStepRegions], index); }
  __device__ __forceinline__ static uint32_t of_op(uint32_t before, int index) { return before + index + 1; }
};

__device__ __forceinline__ uint32_t word_of(float value, uint32_t number) {
  return (__float_as_uint(value) & ~3u) | (number & 3);
}
__device__ __forceinline__ float value_of(uint32_t word) { return __uint_as_float(word & ~3u); }
__device__ __forceinline__ bool there(const uint4& words, uint32_t number) {
  return (((words.x ^ number) | (words.y ^ number) | (words.z ^ number) | (words.w ^ number)) & 3) == 0;
}

// Of another GPU too: hence the scope.
__device__ __forceinline__ uint4 look(const uint32_t* at) {
  uint4 words;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(at)
               : "memory");
  return words;
}
__device__ __forceinline__ void put_word(uint32_t* at, float value, uint32_t number) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(word_of(value, number)) : "memory");
}
__device__ __forceinline__ void put_words(uint32_t* at, float a, float b, uint32_t number) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(at), "r"(word_of(a, number)),
               "r"(word_of(b, number))
               : "memory");
}
__device__ __forceinline__ void put_words(uint32_t* at, const float4& values, uint32_t number) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(word_of(values.x, number)),
               "r"(word_of(values.y, number)), "r"(word_of(values.z, number)), "r"(word_of(values.w, number))
               : "memory");
}

// Where column `column` of a product's or a norm's input lies among its words. A thread takes, of 16 columns, four and
// the four that are eight further on (Eight in step_input.cuh): in this order the fours that the threads of a warp ask
// for at once fill whole lines of 128 bytes. In the columns' own order each line would be asked for twice, for half of
// it, and a value seen 0.5 us later.
__device__ __forceinline__ int word_place(int column) {
  return (column & ~63) | (column & 8) << 2 | (column & 48) >> 1 | (column & 7);
}
constexpr int kOtherFour = 32;  // words between a thread's two fours

// Asks for all fours of words at once, then again for those that have not come, until `give_up(looks)`. `place(i)`:
// where the thread's four `i` is. A thread that needs fewer names some twice: asked for in a branch, one would be
// waited for before the next.
template <int kFours, typename Place, typename GiveUp>
__device__ __forceinline__ void await(Place place, uint32_t number, uint4 (&words)[kFours], GiveUp give_up) {
#pragma unroll
  for (int i = 0; i < kFours; ++i) words[i] = look(place(i));
  for (int looks = 1;; ++looks) {
    bool missing = false;
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      if (!there(words[i], number)) missing = true, words[i] = look(place(i));
    }
    if (!missing || give_up(looks)) return;
  }
}
template <int kFours, typename Place>
__device__ __forceinline__ void await(Place place, uint32_t number, uint4 (&words)[kFours]) {
  await(place, number, words, [](int) { return false; });
}

__device__ __forceinline__ void add_values(const uint4& words, float* to) {
  to[0] += value_of(words.x), to[1] += value_of(words.y), to[2] += value_of(words.z), to[3] += value_of(words.w);
}

// Sums over the ranks; of one rank too, since to wait for words is sooner than to wait for all blocks. Every rank sends
// its part to every rank's inbox, whose halves sums take in turns: a norm reads sum n while sum n + 1 comes, but sum n
// + 2 only comes once every block of every rank has sent its part of sum n + 1, and so has read sum n.
struct Sums {
  const RankBuffers& peers;
  Numbers numbers;
  __device__ __forceinline__ uint32_t* half(int to, int from, uint32_t number) const {
    return peers.receive[to] + ((number & 1) * peers.world + from) * kStepDim;
  }
  __device__ __forceinline__ bool ended(int looks) const {  // host memory is far away: seldom
    return looks % 4096 == 0 && peers.aborted && *peers.aborted;
  }

  // A warp's 16 values from row `place` on, to every rank: lane 4 g + c, c < 2, has that of row g + 8 c in `value`.
  // Four lanes write to one rank, four rows each.
  __device__ __forceinline__ void send(int sum, int place, float value, int lane) const {
    const uint32_t number = numbers.of_sum(sum);
    const int to = lane / 4, quarter = lane % 4, first = quarter % 2 * 16 + quarter / 2;
    float four[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = __shfl_sync(0xffffffffu, value, first + 4 * i);
    if (to >= peers.world) return;
    put_words(half(to, peers.rank, number) + word_place(place + quarter * 4),
              make_float4(four[0], four[1], four[2], four[3]), number);
  }

  // The whole warp, of one GPU: until values i .. i + 3, which stand for the rest, are there. One lane looks: if all
  // threads of all blocks did, they would take the bandwidth that weights need to come. Several GPUs have it to spare.
  __device__ __forceinline__ void wait(int sum, int i) const {
    if (peers.world > 1) return;
    const uint32_t number = numbers.of_sum(sum);
    if (threadIdx.x % 32 == 0) {
      const uint32_t* at = half(0, 0, number) + i;
      while (!there(look(at), number)) {
      }
    }
    __syncwarp();
  }

  // y[pass] += the sum over the ranks, in their order, of values at .. at + 3 and at + 8 .. at + 11, at = places[pass];
  // two ranks at a time. Gives up where the group has ended.
  template <int kPasses>
  __device__ __forceinline__ void take(int sum, const int (&places)[kPasses], float (&y)[kPasses][8]) const {
    int from = 0;
#pragma unroll 1
    for (; from + 2 <= peers.world; from += 2) take_ranks<2>(sum, from, places, y);
    if (from < peers.world) take_ranks<1>(sum, from, places, y);
  }
  template <int kRanks, int kPasses>
  __device__ __forceinline__ void take_ranks(int sum, int from, const int (&places)[kPasses],
                                             float (&y)[kPasses][8]) const {
    constexpr int kEach = 2 * kPasses;  // fours of a rank
    const uint32_t number = numbers.of_sum(sum);
    const uint32_t* words_of = half(peers.rank, from, number);
    uint4 words[kRanks * kEach];
    const auto place = [&](int i) {
      return words_of + i / kEach * kStepDim + word_place(places[i % kEach / 2]) + i % 2 * kOtherFour;
    };
    await(place, number, words, [&](int looks) { return ended(looks); });
#pragma unroll
    for (int i = 0; i < kRanks * kEach; ++i) add_values(words[i], y[i % kEach / 2] + i % 2 * 4);
  }
};
#endif

}  // namespace gemma4::cuda
