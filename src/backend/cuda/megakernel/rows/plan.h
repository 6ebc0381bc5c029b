// What the step of several rows has in memory and in shared memory.
#pragma once

#include <cstdint>

namespace gemma4::cuda {

inline constexpr int kRowsMax = 8;         // rows of a step in the megakernel
inline constexpr int kRowsTilesMax = 512;  // tiles of 64 columns of a GEMV's input

// Where a GEMV's input comes from: each has limbs of its own.
enum class LimbSource : int { kNorm, kAttention, kGeglu };
inline constexpr int kLimbSources = 3;

// Device memory through which the CTAs exchange values (exchange.cuh).
struct RowsWorkspace {
  uint8_t* limbs = nullptr;      // [source, kRowsTilesMax, tile of kRowsMax rows]
  uint32_t* flags = nullptr;     // [source, kRowsTilesMax, kRowsMax], zero at first
  uint64_t* values = nullptr;    // [kRowsMax, kChannelValues] q, k and v, zero at first
  uint64_t* sums = nullptr;      // [kRowsMax, kResidualDimMax] of the GEMVs before norms, zero at first
  uint64_t* partials = nullptr;  // [rows_partials()] of split-K, zero at first
  float2* rotations = nullptr;   // [CTAs, kRowsMax, kRotationsOfRow]
};
inline constexpr int kRotationsOfRow = 128 + 256;  // of heads of 256 and of 512
inline constexpr int64_t kRowsLimbBytes = int64_t{kLimbSources} * kRowsTilesMax * kRowsMax * 144;  // kRowTileBytes
constexpr int64_t rows_partials(int blocks) { return int64_t{2} * blocks * kRowsMax * 128; }       // kRowTileRows

}  // namespace gemma4::cuda
