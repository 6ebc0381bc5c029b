// How values pass from CTA to CTA in a step of several rows: as tagged values, and as limbs with flags.
//
// Tagged values: a float32 with the epoch of the instruction that wrote it in the upper half of 64 bits, as split-K
// partials are. A reader polls until it finds the epoch, so it waits for the value itself.
//
// Limbs: the input of a GEMV, converted once by the CTA that computed it and read by all through their pipelines. They
// lie in memory tile by tile (64 columns of all rows), and each row of a tile has a flag: the epoch of the instruction
// that wrote it, stored with release order after the limbs. A norm makes a whole row, and sets the flag of tile 0
// alone.
//
// No buffer needs a second copy. Every GEMV ends in values of all CTAs that a norm waits for, and everything that was
// written before such a norm has been read by then.
#pragma once

#include "backend/cuda/megakernel/int8_input.cuh"

namespace gemma4::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr int kRowsScratch = 16 * (640 + kRowPad) * 2;  // bytes: 16 queries of a full layer; also what the norms need
static_assert(kRowsScratch >= kScratchLeast && kRowsScratch % 128 == 0);

// Tagged values.

__device__ __forceinline__ void store_tagged(uint64_t* at, float value, uint32_t epoch) {
  const uint64_t tagged = static_cast<uint64_t>(epoch) << 32 | __float_as_uint(value);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(at), "l"(tagged) : "memory");
}
struct TaggedPair {
  uint64_t v[2];
  __device__ __forceinline__ void poll(const uint64_t* at) {  // 16-byte aligned
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(v[0]), "=l"(v[1]) : "l"(at) : "memory");
  }
  __device__ __forceinline__ bool ready(uint32_t epoch) const {
    return static_cast<uint32_t>(v[0] >> 32) == epoch && static_cast<uint32_t>(v[1] >> 32) == epoch;
  }
  __device__ __forceinline__ float value(int i) const { return __uint_as_float(static_cast<uint32_t>(v[i])); }
};

// Loads all pairs at once, then polls those that are not ready. `address(i)`: of the thread's pair i.
template <int kPairs, typename Address>
__device__ __forceinline__ void wait_for_pairs(Address address, uint32_t epoch, TaggedPair (&pairs)[kPairs]) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i) pairs[i].poll(address(i));
  for (bool missing = true; missing;) {
    missing = false;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (!pairs[i].ready(epoch)) missing = true, pairs[i].poll(address(i));
    }
  }
}

// What a flagged value of the kernel of one row loses. Dropping it here too gives the same bits as one row.
__device__ __forceinline__ float as_flagged(float value) { return remove_flag(__float_as_uint(value)); }

// Limbs.

// The limbs of all rows of a tile: [half][row][64 bytes], then their group scales [half][row][8 bytes]. The 64 bytes
// are [high, low][lane c][8 bytes], the B operand of a lane.
constexpr int kRowTileBytes = kLimbBytes + kGroupScaleBytes;  // of a row
static_assert(kRowsLimbBytes == int64_t{kLimbSources} * kRowsTilesMax * kRowsMax * kRowTileBytes);
static_assert(rows_partials(1) == 2 * kRowsMax * kRowTileRows);

// Where one row's limbs go (`Input` of store_limbs()).
struct RowLimbs {
  uint8_t* tiles;
  int row, rows;
  __device__ __forceinline__ uint8_t* limbs_of(int tile, int half) const {
    return tiles + tile * rows * kRowTileBytes + (half * rows + row) * (kLimbBytes / 2);
  }
  __device__ __forceinline__ uint8_t* scale_of(int tile, int half) const {
    return tiles + tile * rows * kRowTileBytes + rows * kLimbBytes + (half * rows + row) * (kGroupScaleBytes / 2);
  }
};

// The input of one GEMV in memory.
struct LimbBuffer {
  uint8_t* tiles;
  uint32_t* flags;  // [tile, kRowsMax]
  int rows;
  __device__ __forceinline__ LimbBuffer(const RowsWorkspace& w, LimbSource source, int rows_)
      : tiles(w.limbs + static_cast<int64_t>(source) * kRowsTilesMax * kRowsMax * kRowTileBytes),
        flags(w.flags + static_cast<int64_t>(source) * kRowsTilesMax * kRowsMax),
        rows(rows_) {}
  __device__ __forceinline__ RowLimbs row(int row) const { return {tiles, row, rows}; }
  // After a barrier that follows the writes of the limbs.
  __device__ __forceinline__ void set_flag(int tile, int row, uint32_t epoch) const {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flags + tile * kRowsMax + row), "r"(epoch) : "memory");
  }
};

// The thread's 8 values of a tile, as Vector8 names them: `step` is the 16 columns (0 to 3), `h` the half of them. All
// lanes of the warp call it; eight that follow each other have one row of one tile. Writes where `real`.
__device__ __forceinline__ void store_tile_limbs(const RowLimbs& to, int tile, const float (&x)[8], bool real) {
  struct Shifted {  // store_limbs() names tiles by the thread
    RowLimbs to;
    int shift;
    __device__ __forceinline__ uint8_t* limbs_of(int tile, int half) const { return to.limbs_of(tile + shift, half); }
    __device__ __forceinline__ uint8_t* scale_of(int tile, int half) const { return to.scale_of(tile + shift, half); }
  };
  const int mine = Vector8(0).tile;
  const Shifted shifted = {to, tile - mine};
  float values[1][8];
#pragma unroll
  for (int i = 0; i < 8; ++i) values[0][i] = x[i];
  const int count = real ? mine + 1 : 0;
  store_scales(shifted, count, store_limbs(shifted, count, values), 1.0f);
}

__device__ __forceinline__ uint4 poll_flags(const uint32_t* at) {
  uint4 f;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.x), "=r"(f.y), "=r"(f.z), "=r"(f.w)
               : "l"(at)
               : "memory");
  return f;
}

// The limb warp: waits until the tiles that a stage needs are ready, several stages ahead where they are.
struct LimbWait {
  const uint32_t* flags;
  uint32_t epoch;
  int rows, tiles;         // of x; of a row of x
  bool whole_rows;         // tile 0 has the flags of all
  int begin = 0, end = 0;  // tiles known to be ready
  __device__ __forceinline__ void wait(int tile, int count, int lane) {
    if (tile >= begin && tile + count <= end) return;
    if (whole_rows) {
      wait_for(0, 1, lane);
      begin = 0, end = tiles;
    } else {
      wait_for(tile, count, lane);
    }
  }
  __device__ __forceinline__ void wait_for(int tile, int count, int lane) {
    constexpr int kLanes = kRowsMax / 4, kTiles = 32 / kLanes;  // lanes of a tile; tiles at a time
    const int mine = min(tile + lane / kLanes, tiles - 1), part = lane % kLanes * 4;
    begin = tile, end = tile;
    while (end < tile + count) {
      const uint4 f = poll_flags(flags + mine * kRowsMax + part);
      const bool ready = (f.x == epoch || part >= rows) && (f.y == epoch || part + 1 >= rows) &&
                         (f.z == epoch || part + 2 >= rows) && (f.w == epoch || part + 3 >= rows);
      const uint32_t missing = ~__ballot_sync(0xffffffffu, ready);
      end = tile + (missing ? (__ffs(static_cast<int>(missing)) - 1) / kLanes : kTiles);
    }
    asm volatile("fence.acq_rel.gpu;" ::: "memory");  // the flags were read before the limbs will be
    __syncwarp();
  }
};
#endif

}  // namespace gemma4::cuda
