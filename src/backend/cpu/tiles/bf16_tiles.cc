#include "backend/cpu/tiles/bf16_tiles.h"

#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gemma4::cpu {
namespace {

constexpr int64_t kPairs = kTileCols / 2;  // rows of b of a tile
constexpr int64_t kOutputs = 32;
constexpr int64_t kPeakTiles = 8, kPeakCount = 20000;  // of tile_products(): 32 KiB, some milliseconds

void plain_product(const uint16_t* a, int64_t a_stride, int row_tiles, const uint32_t* b, int64_t k_tiles, float* c,
                   bool accumulate) {
  const auto value = [](uint32_t bf16) { return std::bit_cast<float>(bf16 << 16); };
  for (int64_t m = 0; m < row_tiles * kTileXRows; ++m) {
    const uint16_t* row = a + m / kTileXRows * a_stride + m % kTileXRows * kTileCols;
    for (int64_t n = 0; n < kOutputs; ++n) {
      float sum = accumulate ? c[m * kOutputs + n] : 0;
      for (int64_t p = 0; p < k_tiles * kPairs; ++p) {
        const uint16_t* pair = row + p / kPairs * kTileElements + p % kPairs * 2;
        const uint32_t w = b[p * kOutputs + n];
        sum += value(pair[0]) * value(w & 0xffff) + value(pair[1]) * value(w >> 16);
      }
      c[m * kOutputs + n] = sum;
    }
  }
}

#if defined(__x86_64__)

// AMX. Tiles 0 to 3 are the sums of 2 x 2 tiles, 4 and 5 weights, 6 and 7 rows of x: four products for four loads.

// All tiles: 16 rows of 64 bytes. In static memory: g++ 12 tells its optimizer that LDTILECFG reads 8 bytes, so that
// stores to the other 56 would go.
struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);
alignas(64) constexpr TileConfig kTileConfig = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

__attribute__((target("amx-tile"))) void amx_begin() { _tile_loadconfig(&kTileConfig); }

__attribute__((target("amx-tile"))) void amx_end() { _tile_release(); }

__attribute__((target("amx-tile,amx-bf16"))) void amx_product(const uint16_t* a, int64_t a_stride, int row_tiles,
                                                              const uint32_t* b, int64_t k_tiles, float* c,
                                                              bool accumulate) {
  constexpr int kPitch = kOutputs * 4;  // bytes, of b and of c
  asm volatile("" ::: "memory");        // g++'s tile loads do not say that they read memory
  float* second = c + kTileXRows * kOutputs;
  const bool two = row_tiles == 2;
  if (accumulate) {
    _tile_loadd(0, c, kPitch);
    _tile_loadd(1, c + 16, kPitch);
    if (two) {
      _tile_loadd(2, second, kPitch);
      _tile_loadd(3, second + 16, kPitch);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const uint16_t* a2 = a + a_stride;
  for (int64_t k = 0; k < k_tiles; ++k, a += kTileElements, a2 += kTileElements, b += kPairs * kOutputs) {
    _tile_loadd(4, b, kPitch);
    _tile_loadd(6, a, 64);
    _tile_loadd(5, b + 16, kPitch);
    _tile_dpbf16ps(0, 6, 4);
    _tile_dpbf16ps(1, 6, 5);
    if (!two) continue;
    _tile_loadd(7, a2, 64);
    _tile_dpbf16ps(2, 7, 4);
    _tile_dpbf16ps(3, 7, 5);
  }
  _tile_stored(0, c, kPitch);
  _tile_stored(1, c + 16, kPitch);
  if (!two) return;
  _tile_stored(2, second, kPitch);
  _tile_stored(3, second + 16, kPitch);
}

// The kernel saves 8 KB more a thread where tiles are used, so a process asks for them first.
bool amx_allowed() {
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
  if ((d & kBf16) == 0 || (d & kTiles) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

constexpr TileEngine kAmx = {"AMX", true, amx_begin, amx_end, amx_product};

// VDPBF16PS. Eight rows of x and 32 outputs: 16 sums in registers.
__attribute__((target("avx512f,avx512bf16"))) void dot_product_rows(const uint16_t* a, const uint32_t* b,
                                                                    int64_t k_tiles, float* c, bool accumulate) {
  constexpr int kRows = 8;
  __m512 sum[kRows][2];
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < 2; ++n) {
      sum[m][n] = accumulate ? _mm512_loadu_ps(c + m * kOutputs + n * 16) : _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < k_tiles; ++k, a += kTileElements) {
    for (int64_t p = 0; p < kPairs; ++p, b += kOutputs) {
      const __m512bh low = (__m512bh)_mm512_loadu_si512(b), high = (__m512bh)_mm512_loadu_si512(b + 16);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        int pair;
        std::memcpy(&pair, a + m * kTileCols + p * 2, 4);
        const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
        sum[m][0] = _mm512_dpbf16_ps(sum[m][0], x, low);
        sum[m][1] = _mm512_dpbf16_ps(sum[m][1], x, high);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < 2; ++n) _mm512_storeu_ps(c + m * kOutputs + n * 16, sum[m][n]);
  }
}

void dot_product(const uint16_t* a, int64_t a_stride, int row_tiles, const uint32_t* b, int64_t k_tiles, float* c,
                 bool accumulate) {
  for (int m = 0; m < row_tiles * kTileXRows; m += 8) {
    const uint16_t* rows = a + m / kTileXRows * a_stride + m % kTileXRows * kTileCols;
    dot_product_rows(rows, b, k_tiles, c + m * kOutputs, accumulate);
  }
}

bool has_dot_product() {
  unsigned a, b, c, d;
  if (!__builtin_cpu_supports("avx512f")) return false;  // and the system saves its registers
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0) return false;
  return (a & 1u << 5) != 0;  // AVX512_BF16
}

constexpr TileEngine kDot = {"AVX-512 BF16", false, nullptr, nullptr, dot_product};

#endif

constexpr TileEngine kPlain = {"plain", true, nullptr, nullptr, plain_product};

}  // namespace

std::vector<const TileEngine*> tile_engines() {
  std::vector<const TileEngine*> engines;
#if defined(__x86_64__)
  static const bool amx = amx_allowed(), dot = has_dot_product();
  if (amx) engines.push_back(&kAmx);
  if (dot) engines.push_back(&kDot);
#endif
  engines.push_back(&kPlain);
  return engines;
}

const TileEngine* tile_engine() {
#if defined(__x86_64__)
  if (tile_engines().front() == &kAmx) return &kAmx;
#endif
  return nullptr;
}

void tile_products(const TileEngine& engine) {
  alignas(64) static const uint16_t a[2 * kPeakTiles * kTileElements] = {};
  alignas(64) static const uint32_t b[kPeakTiles * kPairs * kOutputs] = {};
  alignas(64) float c[2 * kTileXRows * kOutputs];
  if (engine.begin) engine.begin();
  for (int64_t i = 0; i < kPeakCount; ++i) {
    engine.product(a, kPeakTiles * kTileElements, 2, b, kPeakTiles, c, i > 0);
  }
  if (engine.end) engine.end();
}

double tile_product_flops() {
  return 2.0 * 2 * kTileXRows * kOutputs * kPeakTiles * kTileCols * static_cast<double>(kPeakCount);
}

}  // namespace gemma4::cpu
