// The packed weight layouts: what the bytes of one weight tile (16 rows x 64 columns) mean, how a warp turns them into
// tensor core operands, and how a kernel finds a single weight. A tile holds codes, then scales, then zero points or
// minimums.
//
// Codes lie in the order of the A operand of mma.m16n8k16 (device/mma.cuh): lane 4 g + c holds rows g and g + 8, and of
// each 16 columns those at 2c, 2c + 1, 2c + 8, 2c + 9. The two elements of a register are 16 bits apart, so one logical
// operation and no shuffle makes a register of two bf16: 0x4300 | q is 128 + q, exactly, for q < 128.
//
// A codec is a struct of a lane's registers for one tile. load() fills it. fragment(step) gives whole numbers, exact in
// bf16, for 16 columns. A weight is scale * fragment - minimum; scale(group) and minimum(group) are f32, for rows g and
// g + 8. value() reads one weight from memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/device/convert.cuh"
#include "backend/cuda/device/mma.cuh"
#include "backend/cuda/gemm/linear.h"
#include "base/check.h"

namespace gemma4::cuda {

// Where element (row, col) of a tile is.
struct TileOffset {
  int g, half, step, lane, pair, element;
  __host__ __device__ TileOffset(int row, int col)
      : g(row % 8),
        half(row / 8),
        step(col / 16),
        lane(row % 8 * 4 + col % 8 / 2),
        pair(row / 8 + 2 * (col % 16 / 8)),
        element(col % 2) {}
  __host__ __device__ int word4() const { return lane * 4 + step; }  // 32-bit words of 4-bit codes
  __host__ __device__ int shift4() const { return 4 * pair + 16 * element; }
  __host__ __device__ int byte8() const {  // bytes of 8-bit codes
    return step / 2 * 512 + lane * 16 + step % 2 * 8 + pair / 2 * 4 + half + 2 * element;
  }
  __host__ __device__ int word2() const { return lane * 2 + step / 2; }  // 32-bit words of 2-bit codes
  __host__ __device__ int shift2() const { return step % 2 * 8 + 2 * pair + 16 * element; }
};

__device__ __forceinline__ uint32_t word(const uint8_t* p) { return *reinterpret_cast<const uint32_t*>(p); }
__device__ __forceinline__ uint2 words2(const uint8_t* p) { return *reinterpret_cast<const uint2*>(p); }
__device__ __forceinline__ uint4 words4(const uint8_t* p) { return *reinterpret_cast<const uint4*>(p); }

// (bits & mask) | or_bits
__device__ __forceinline__ uint32_t and_or(uint32_t bits, uint32_t mask, uint32_t or_bits) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(bits), "r"(mask), "r"(or_bits));
  return out;
}
__device__ __forceinline__ uint32_t sub_pairs(uint32_t a, uint32_t b) {
  return as_bits(__hsub2(as_pair(a), as_pair(b)));
}
constexpr uint32_t kMagic = 0x43004300;  // two bf16 of 128

// 4-bit codes, shared by several codecs: 16 bytes a lane.
struct Codes4 {
  uint32_t w[4];
  __device__ __forceinline__ void load(const uint8_t* tile, int lane) {
    const uint4 v = words4(tile + lane * 16);
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  }
  __device__ __forceinline__ uint32_t magic(int step, int pair) const {  // 128 + q
    return and_or(w[step] >> (4 * pair), 0x000f000f, kMagic);
  }
};

__device__ __forceinline__ int code4(const uint8_t* tile, const TileOffset& at) {
  return word(tile + at.word4() * 4) >> at.shift4() & 15;
}

// 8-bit signed codes: 32 bytes a lane. With s the sign bit and l the rest, code = (128 + l) - (128 + 128 s), and both
// terms are a bf16 made by one operation: 0x4380 is 256.
struct Codes8 {
  uint32_t w[8];
  __device__ __forceinline__ void load(const uint8_t* tile, int lane) {
    const uint4 a = words4(tile + lane * 16), b = words4(tile + 512 + lane * 16);
    w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w, w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
  }
  __device__ __forceinline__ void fragment(int step, uint32_t (&a)[4]) const {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      const uint32_t bits = w[step * 2 + pair / 2] >> (pair % 2 * 8);
      a[pair] = sub_pairs(and_or(bits, 0x007f007f, kMagic), and_or(bits, 0x00800080, kMagic));
    }
  }
};

// Int4 with whole zero points: codes 512 | scales BF16 [g][group][half] | zeros 4 bits [g][group][half].
// kGroups: scales a row has in a tile, 2 or 1.
template <int kGroups>
struct Int4Codec {
  static constexpr int kBytes = 512 + 32 * kGroups + 16;
  static constexpr int kGroupSteps = 4 / kGroups;
  static constexpr bool kHasMinimum = false;
  Codes4 codes;
  uint32_t s[kGroups], z;
  __device__ __forceinline__ void load(const uint8_t* tile, int lane) {
    codes.load(tile, lane);
    const int g = lane / 4;
    if constexpr (kGroups == 2) {
      const uint2 v = words2(tile + 512 + g * 8);
      s[0] = v.x, s[kGroups - 1] = v.y;
      z = *reinterpret_cast<const uint16_t*>(tile + 576 + g * 2);
    } else {
      s[0] = word(tile + 512 + g * 4);
      z = tile[544 + g];
    }
  }
  __device__ __forceinline__ uint32_t zero(int group, int half) const {  // 128 + zero, twice
    return (z >> (8 * group + 4 * half) & 15) * 0x00010001u | kMagic;
  }
  __device__ __forceinline__ void fragment(int step, uint32_t (&a)[4]) const {
    const uint32_t z0 = zero(step / kGroupSteps, 0), z1 = zero(step / kGroupSteps, 1);
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) a[pair] = sub_pairs(codes.magic(step, pair), pair % 2 ? z1 : z0);
  }
  __device__ __forceinline__ float2 scale(int group) const { return unpack_bf16x2(s[group]); }
  __device__ __forceinline__ float2 minimum(int) const { return make_float2(0, 0); }

  static __device__ float value(const uint8_t* tile, int row, int col) {
    const TileOffset at(row, col);
    const int group = col / (64 / kGroups), index = (at.g * kGroups + group) * 2 + at.half;
    const int zero = tile[512 + 32 * kGroups + index / 2] >> (4 * at.half) & 15;
    const float scale = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(tile + 512)[index]);
    return static_cast<float>(code4(tile, at) - zero) * scale;
  }
};

// Int4 with BF16 zero points: codes 512 | scales [g][group][half] | zeros, the same.
template <int kGroups>
struct Int4FracCodec {
  static constexpr int kBytes = 512 + 64 * kGroups;
  static constexpr int kGroupSteps = 4 / kGroups;
  static constexpr bool kHasMinimum = true;
  Codes4 codes;
  uint32_t s[kGroups], z[kGroups];
  __device__ __forceinline__ void load(const uint8_t* tile, int lane) {
    codes.load(tile, lane);
    const int g = lane / 4;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      s[group] = word(tile + 512 + (g * kGroups + group) * 4);
      z[group] = word(tile + 512 + 32 * kGroups + (g * kGroups + group) * 4);
    }
  }
  __device__ __forceinline__ void fragment(int step, uint32_t (&a)[4]) const {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) a[pair] = sub_pairs(codes.magic(step, pair), kMagic);
  }
  __device__ __forceinline__ float2 scale(int group) const { return unpack_bf16x2(s[group]); }
  __device__ __forceinline__ float2 minimum(int group) const {
    const float2 a = unpack_bf16x2(s[group]), b = unpack_bf16x2(z[group]);
    return make_float2(a.x * b.x, a.y * b.y);
  }

  static __device__ float value(const uint8_t* tile, int row, int col) {
    const TileOffset at(row, col);
    const int index = (at.g * kGroups + col / (64 / kGroups)) * 2 + at.half;
    const __nv_bfloat16* scales = reinterpret_cast<const __nv_bfloat16*>(tile + 512);
    const float zero = __bfloat162float(scales[16 * kGroups + index]);
    return (static_cast<float>(code4(tile, at)) - zero) * __bfloat162float(scales[index]);
  }
};

// ggml Q4_0: codes 512 | scales F16 [g][group][half]; zero point 8.
struct Q40Codec {
  static constexpr int kBytes = 576, kGroupSteps = 2;
  static constexpr bool kHasMinimum = false;
  Codes4 codes;
  uint32_t s[2];
  __device__ __forceinline__ void load(const uint8_t* tile, int lane) {
    codes.load(tile, lane);
    const uint2 v = words2(tile + 512 + lane / 4 * 8);
    s[0] = v.x, s[1] = v.y;
  }
  __device__ __forceinline__ void fragment(int step, uint32_t (&a)[4]) const {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) a[pair] = sub_pairs(codes.magic(step, pair), 0x43084308);
  }
  __device__ __forceinline__ float2 scale(int group) const { return unpack_f16x2(s[group]); }
  __device__ __forceinline__ float2 minimum(int) const { return make_float2(0, 0); }

  static __device__ float value(const uint8_t* tile, int row, int col) {
    const TileOffset at(row, col);
    const int index = (at.g * 2 + col / 32) * 2 + at.half;
    return static_cast<float>(code4(tile, at) - 8) * __half2float(reinterpret_cast<const __half*>(tile + 512)[index]);
  }
};

// ggml Q4_K: codes 512 | [g][group][half] of {6-bit scale, 6-bit minimum} bytes 64 | [g][half] of {d, dmin} F16 64.
// w = d scale q - dmin minimum.
struct Q4KCodec {
  static constexpr int kBytes = 640, kGroupSteps = 2;
  static constexpr bool kHasMinimum = true;
  Codes4 codes;
  uint32_t sm[2], d[2];
  __device__ __forceinline__ void load(const uint8_t* tile, int lane) {
    codes.load(tile, lane);
    const uint2 a = words2(tile + 512 + lane / 4 * 8), b = words2(tile + 576 + lane / 4 * 8);
    sm[0] = a.x, sm[1] = a.y, d[0] = b.x, d[1] = b.y;
  }
  __device__ __forceinline__ void fragment(int step, uint32_t (&a)[4]) const {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) a[pair] = sub_pairs(codes.magic(step, pair), kMagic);
  }
  __device__ __forceinline__ float2 scale(int group) const {
    return make_float2(unpack_f16x2(d[0]).x * static_cast<float>(sm[group] & 255),
                       unpack_f16x2(d[1]).x * static_cast<float>(sm[group] >> 16 & 255));
  }
  __device__ __forceinline__ float2 minimum(int group) const {
    return make_float2(unpack_f16x2(d[0]).y * static_cast<float>(sm[group] >> 8 & 255),
                       unpack_f16x2(d[1]).y * static_cast<float>(sm[group] >> 24));
  }

  static __device__ float value(const uint8_t* tile, int row, int col) {
    const TileOffset at(row, col);
    const uint8_t* sm = tile + 512 + ((at.g * 2 + col / 32) * 2 + at.half) * 2;
    const __half* d = reinterpret_cast<const __half*>(tile + 576) + (at.g * 2 + at.half) * 2;
    return __half2float(d[0]) * sm[0] * static_cast<float>(code4(tile, at)) - __half2float(d[1]) * sm[1];
  }
};

// ggml Q6_K: low 4 bits 512 | high 2 bits 256 | 8-bit scales [g][16 columns][half] 64 | d F16 [g][half] 32.
// w = d scale (q - 32).
struct Q6KCodec {
  static constexpr int kBytes = 864, kGroupSteps = 1;
  static constexpr bool kHasMinimum = false;
  Codes4 codes;
  uint32_t high[2], s[2], d;
  __device__ __forceinline__ void load(const uint8_t* tile, int lane) {
    codes.load(tile, lane);
    const uint2 a = words2(tile + 512 + lane * 8), b = words2(tile + 768 + lane / 4 * 8);
    high[0] = a.x, high[1] = a.y, s[0] = b.x, s[1] = b.y;
    d = word(tile + 832 + lane / 4 * 4);
  }
  __device__ __forceinline__ void fragment(int step, uint32_t (&a)[4]) const {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      const int shift = step % 2 * 8 + 2 * pair;
      const uint32_t h = shift < 4 ? high[step / 2] << (4 - shift) : high[step / 2] >> (shift - 4);
      a[pair] = sub_pairs(and_or(h, 0x00300030, codes.magic(step, pair)), 0x43204320);
    }
  }
  __device__ __forceinline__ float2 scale(int group) const {
    const float2 factor = unpack_f16x2(d);
    const uint32_t bits = s[group / 2] >> (group % 2 * 16);
    return make_float2(factor.x * static_cast<float>(static_cast<int8_t>(bits)),
                       factor.y * static_cast<float>(static_cast<int8_t>(bits >> 8)));
  }
  __device__ __forceinline__ float2 minimum(int) const { return make_float2(0, 0); }

  static __device__ float value(const uint8_t* tile, int row, int col) {
    const TileOffset at(row, col);
    const int high = word(tile + 512 + at.word2() * 4) >> at.shift2() & 3;
    const int8_t scale = static_cast<int8_t>(tile[768 + (at.g * 4 + at.step) * 2 + at.half]);
    const float d = __half2float(reinterpret_cast<const __half*>(tile + 832)[at.g * 2 + at.half]);
    return d * scale * static_cast<float>((code4(tile, at) | high << 4) - 32);
  }
};

enum class ScaleType { kBF16, kF16, kF32 };

// 8-bit codes 1024 | scales 64: [g][group][half] for 32 columns in BF16 or F16, [g][half] for 64 in F32.
template <ScaleType kScale>
struct Int8Codec {
  static constexpr int kBytes = 1088, kGroupSteps = kScale == ScaleType::kF32 ? 4 : 2;
  static constexpr bool kHasMinimum = false;
  Codes8 codes;
  uint32_t s[2];
  __device__ __forceinline__ void load(const uint8_t* tile, int lane) {
    codes.load(tile, lane);
    const uint2 v = words2(tile + 1024 + lane / 4 * 8);
    s[0] = v.x, s[1] = v.y;
  }
  __device__ __forceinline__ void fragment(int step, uint32_t (&a)[4]) const { codes.fragment(step, a); }
  __device__ __forceinline__ float2 scale(int group) const {
    if constexpr (kScale == ScaleType::kBF16) return unpack_bf16x2(s[group]);
    if constexpr (kScale == ScaleType::kF16) return unpack_f16x2(s[group]);
    return make_float2(__uint_as_float(s[0]), __uint_as_float(s[1]));
  }
  __device__ __forceinline__ float2 minimum(int) const { return make_float2(0, 0); }

  static __device__ float value(const uint8_t* tile, int row, int col) {
    const TileOffset at(row, col);
    const int index = (at.g * 2 + col / 32) * 2 + at.half;
    const uint8_t* scales = tile + 1024;
    float scale;
    if constexpr (kScale == ScaleType::kBF16) {
      scale = __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(scales)[index]);
    } else if constexpr (kScale == ScaleType::kF16) {
      scale = __half2float(reinterpret_cast<const __half*>(scales)[index]);
    } else {
      scale = reinterpret_cast<const float*>(scales)[at.g * 2 + at.half];
    }
    return static_cast<float>(static_cast<int8_t>(tile[at.byte8()])) * scale;
  }
};

// The weights of one step as the A operand, rounded to bf16: scale * fragment - minimum.
template <typename Codec>
__device__ __forceinline__ void scaled_fragment(const Codec& codec, int step, uint32_t (&a)[4]) {
  const int group = step / Codec::kGroupSteps;
  codec.fragment(step, a);
  const float2 scale = codec.scale(group);
  const __nv_bfloat162 scales[2] = {__float2bfloat162_rn(scale.x), __float2bfloat162_rn(scale.y)};
  if constexpr (Codec::kHasMinimum) {
    const float2 minimum = codec.minimum(group);
    const __nv_bfloat162 minimums[2] = {__float2bfloat162_rn(-minimum.x), __float2bfloat162_rn(-minimum.y)};
#pragma unroll
    for (int pair = 0; pair < 4; ++pair)
      a[pair] = as_bits(__hfma2(as_pair(a[pair]), scales[pair % 2], minimums[pair % 2]));
  } else {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) a[pair] = as_bits(__hmul2(as_pair(a[pair]), scales[pair % 2]));
  }
}

// Calls body(Codec{}) with the codec of a packed layout.
template <typename Body>
void with_codec(Layout layout, Body&& body) {
  switch (layout) {
    case Layout::kInt4G32:
      return body(Int4Codec<2>{});
    case Layout::kInt4G64:
      return body(Int4Codec<1>{});
    case Layout::kInt4G32Frac:
      return body(Int4FracCodec<2>{});
    case Layout::kInt4G64Frac:
      return body(Int4FracCodec<1>{});
    case Layout::kQ4_0:
      return body(Q40Codec{});
    case Layout::kQ4_K:
      return body(Q4KCodec{});
    case Layout::kQ6_K:
      return body(Q6KCodec{});
    case Layout::kInt8G32:
      return body(Int8Codec<ScaleType::kBF16>{});
    case Layout::kInt8G64:
      return body(Int8Codec<ScaleType::kF32>{});
    case Layout::kQ8_0:
      return body(Int8Codec<ScaleType::kF16>{});
    case Layout::kBF16:
      CHECK(false);
  }
}

// The packed bytes of a matrix, for kernels that read single weights.
struct Packed {
  const uint8_t* data;
  int rows, col_tiles;  // col_tiles: cols / 64
  bool paired;

  // Row `row` of the stacked matrices is this one of the packed rows.
  __host__ __device__ int packed_row(int row) const {
    if (!paired) return row;
    const int half = rows / 2, i = row < half ? row : row - half;
    return i / 8 * 16 + i % 8 + (row < half ? 0 : 8);
  }
};

inline Packed packed(const DeviceMatrix& w) {
  return {static_cast<const uint8_t*>(w.data), static_cast<int>(w.rows), static_cast<int>(w.cols / kWeightTileCols),
          w.paired};
}

// The first byte of the tile that holds packed row `packed_row` and column `col`.
__device__ __forceinline__ const uint8_t* weight_tile_at(const Packed& w, int packed_row, int col, int bytes) {
  const int64_t index =
      (static_cast<int64_t>(packed_row / kRowTileRows) * w.col_tiles + col / kWeightTileCols) * kRowTileTiles +
      packed_row % kRowTileRows / kWeightTileRows;
  return w.data + index * bytes;
}

// weight(row, col) as a float, for kernels that are written once for all layouts.
template <typename Codec>
struct WeightReader {
  Packed w;
  __device__ float operator()(int row, int col) const {
    const int at = w.packed_row(row);
    return Codec::value(weight_tile_at(w, at, col, Codec::kBytes), at % kWeightTileRows, col % kWeightTileCols);
  }
};
struct BF16Reader {
  const __nv_bfloat16* data;
  int64_t pitch;
  __device__ float operator()(int row, int col) const { return __bfloat162float(data[row * pitch + col]); }
};

inline BF16Reader bf16_reader(const DeviceMatrix& w) { return {static_cast<const __nv_bfloat16*>(w.data), w.pitch}; }

// Calls body(reader) with the reader for the layout of w.
template <typename Body>
void with_reader(const DeviceMatrix& w, Body&& body) {
  if (w.layout == Layout::kBF16) return body(bf16_reader(w));
  with_codec(w.layout, [&](auto codec) { body(WeightReader<decltype(codec)>{packed(w)}); });
}

}  // namespace gemma4::cuda
