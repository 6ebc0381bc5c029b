#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "backend/cuda/gemm/pack_weights.h"
#include "backend/cuda/gemm/select_kernel.h"
#include "backend/cuda/runtime/error.h"
#include "base/bf16.h"
#include "base/threads.h"
#include "quant/pack.h"

namespace gemma4::cuda {
namespace {

constexpr int64_t kSlabBytes = 64 << 20;

// Some rows of stacked matrices on the device, as they are in the checkpoint.
struct Slab {
  const uint8_t* codes;  // [rows, row_bytes]
  const uint8_t* scale;  // int4: BF16 or F16 [groups, rows]; int8: [rows, groups]
  const uint8_t* zero;   // int4: as scale
  int64_t row_bytes;
  int rows, half;  // half: rows of the first of two interleaved matrices, else 0
  int groups, group;
  bool scale_f32, scale_f16;

  // The row that goes to packed row `at`, or -1 for padding.
  __device__ int row(int at) const {
    if (half == 0) return at < rows ? at : -1;
    const int i = at / 16 * 8 + at % 8;
    return i >= half ? -1 : at % 16 < 8 ? i : half + i;
  }
};

__device__ uint32_t ggml_q4k_scale(const uint8_t* block, int sub) {  // scale | minimum << 8
  const uint8_t* s = block + 4;
  if (sub < 4) return (s[sub] & 63) | (s[sub + 4] & 63) << 8;
  return (s[sub + 4] & 15) | (s[sub - 4] >> 6) << 4 | ((s[sub + 4] >> 4) | (s[sub] >> 6) << 4) << 8;
}

// The code of one element, unsigned as it is stored; layouts of ggml blocks: docs/FORMATS.md.
template <Layout kLayout>
__device__ uint32_t source_code(const uint8_t* row, int col) {
  if constexpr (kLayout == Layout::kQ4_0) {
    const uint8_t byte = row[col / 32 * 18 + 2 + col % 16];
    return col % 32 < 16 ? byte & 15 : byte >> 4;
  } else if constexpr (kLayout == Layout::kQ8_0) {
    return row[col / 32 * 34 + 2 + col % 32];
  } else if constexpr (kLayout == Layout::kQ4_K) {
    const int i = col % 256;
    const uint8_t byte = row[col / 256 * 144 + 16 + i / 64 * 32 + i % 32];
    return i % 64 < 32 ? byte & 15 : byte >> 4;
  } else if constexpr (kLayout == Layout::kQ6_K) {
    const uint8_t* block = row + col / 256 * 210;
    const int i = col % 128, half = col % 256 / 128;
    const uint8_t low = block[half * 64 + i % 64], high = block[128 + half * 32 + i % 32];
    return (i < 64 ? low & 15 : low >> 4) | (high >> (i / 32 * 2) & 3) << 4;
  } else if constexpr (kLayout == Layout::kInt8G32 || kLayout == Layout::kInt8G64) {
    return row[col];
  } else {
    return col % 2 == 0 ? row[col / 2] & 15 : row[col / 2] >> 4;
  }
}

template <Layout kLayout>
__device__ uint32_t safe_code(const Slab& slab, int row, int col) {
  return row < 0 ? 0 : source_code<kLayout>(slab.codes + row * slab.row_bytes, col);
}

// Writes one lane's codes of a weight tile; rows[half] are the source rows of g and g + 8.
template <Layout kLayout>
__device__ void pack_codes(const Slab& slab, uint8_t* tile, int lane, const int (&rows)[2], int col) {
  constexpr bool k8 = kLayout == Layout::kInt8G32 || kLayout == Layout::kInt8G64 || kLayout == Layout::kQ8_0;
  const int c = lane % 4;
  uint32_t high[2] = {};
  for (int step = 0; step < 4; ++step) {
    uint32_t word4 = 0, word8[2] = {};
    for (int pair = 0; pair < 4; ++pair) {
      for (int e = 0; e < 2; ++e) {
        const uint32_t code = safe_code<kLayout>(slab, rows[pair % 2], col + step * 16 + pair / 2 * 8 + 2 * c + e);
        word4 |= (code & 15) << (4 * pair + 16 * e);
        word8[pair / 2] |= (code & 255) << (8 * (pair % 2 + 2 * e));
        high[step / 2] |= (code >> 4 & 3) << (step % 2 * 8 + 2 * pair + 16 * e);
      }
    }
    if constexpr (k8) {
      reinterpret_cast<uint32_t*>(tile)[step / 2 * 128 + lane * 4 + step % 2 * 2] = word8[0];
      reinterpret_cast<uint32_t*>(tile)[step / 2 * 128 + lane * 4 + step % 2 * 2 + 1] = word8[1];
    } else {
      reinterpret_cast<uint32_t*>(tile)[lane * 4 + step] = word4;
    }
  }
  if constexpr (kLayout == Layout::kQ6_K) {
    reinterpret_cast<uint32_t*>(tile + 512)[lane * 2] = high[0];
    reinterpret_cast<uint32_t*>(tile + 512)[lane * 2 + 1] = high[1];
  }
}

__device__ uint16_t half_word(const uint8_t* p) { return p[0] | p[1] << 8; }  // ggml blocks are not aligned

// A scale or zero point of int4 as BF16 bits. F16 scales (GPTQ, AWQ) are rounded, by at most 2^-9 of their size, as the
// tensor cores' operands are for every format.
__device__ uint16_t int4_scale(const Slab& slab, const uint8_t* values, int64_t at) {
  const uint16_t bits = reinterpret_cast<const uint16_t*>(values)[at];
  if (!slab.scale_f16) return bits;
  return __bfloat16_as_ushort(__float2bfloat16_rn(__half2float(__ushort_as_half(bits))));
}

// Writes scales and zero points of int4: one thread for each (row, group) of the weight tile.
template <int kGroups, bool kWhole>
__device__ void pack_int4_scales(const Slab& slab, uint8_t* tile, int g, int half, int group, int row, int col) {
  const int index = (g * kGroups + group) * 2 + half;
  const int64_t at = static_cast<int64_t>((col + group * (64 / kGroups)) / slab.group) * slab.rows + row;
  const uint16_t scale = row < 0 ? 0 : int4_scale(slab, slab.scale, at);
  const uint16_t zero = row < 0 ? 0 : int4_scale(slab, slab.zero, at);
  reinterpret_cast<uint16_t*>(tile + 512)[index] = scale;
  if constexpr (!kWhole) {
    reinterpret_cast<uint16_t*>(tile + 512 + 32 * kGroups)[index] = zero;
  } else {  // lanes of half 0 and 1 are neighbours and share a byte
    const uint32_t whole = static_cast<uint32_t>(__uint_as_float(static_cast<uint32_t>(zero) << 16));
    const uint32_t other = __shfl_xor_sync(__activemask(), whole, 1);
    if (half == 0) tile[512 + 32 * kGroups + index / 2] = static_cast<uint8_t>(whole | other << 4);
    if (kGroups == 1 && half == 0) tile[512 + 32 + 8 + index / 2] = 0;
  }
}

// Writes the scales of a weight tile. Lane = g * 4 + group * 2 + half, for groups of 32 columns.
template <Layout kLayout>
__device__ void pack_scales(const Slab& slab, uint8_t* tile, int lane, int first, int col) {
  const int half = lane % 2, group = lane / 2 % 2, g = lane / 4;
  const int row = slab.row(first + g + 8 * half);
  const uint8_t* source = slab.codes + (row < 0 ? 0 : row) * slab.row_bytes;
  if constexpr (kLayout == Layout::kInt4G32) {
    pack_int4_scales<2, true>(slab, tile, g, half, group, row, col);
  } else if constexpr (kLayout == Layout::kInt4G32Frac) {
    pack_int4_scales<2, false>(slab, tile, g, half, group, row, col);
  } else if constexpr (kLayout == Layout::kInt4G64) {
    if (group == 0) pack_int4_scales<1, true>(slab, tile, g, half, 0, row, col);
  } else if constexpr (kLayout == Layout::kInt4G64Frac) {
    if (group == 0) pack_int4_scales<1, false>(slab, tile, g, half, 0, row, col);
  } else if constexpr (kLayout == Layout::kQ4_0 || kLayout == Layout::kQ8_0) {
    constexpr int kBlock = kLayout == Layout::kQ4_0 ? 18 : 34, kOffset = kLayout == Layout::kQ4_0 ? 512 : 1024;
    const uint16_t d = row < 0 ? 0 : half_word(source + (col + group * 32) / 32 * kBlock);
    reinterpret_cast<uint16_t*>(tile + kOffset)[lane] = d;
  } else if constexpr (kLayout == Layout::kQ4_K) {
    const uint8_t* block = source + col / 256 * 144;
    const uint32_t sm = row < 0 ? 0 : ggml_q4k_scale(block, col % 256 / 32 + group);
    reinterpret_cast<uint16_t*>(tile + 512)[lane] = static_cast<uint16_t>(sm);
    const uint16_t d = row < 0 ? 0 : half_word(block + 2 * group);  // `group` selects d or dmin here
    reinterpret_cast<uint16_t*>(tile + 576)[(g * 2 + half) * 2 + group] = d;
  } else if constexpr (kLayout == Layout::kQ6_K) {
    const uint8_t* block = source + col / 256 * 210;
    for (int i = group; i < 4; i += 2) {
      tile[768 + (g * 4 + i) * 2 + half] = row < 0 ? 0 : block[192 + col % 256 / 16 + i];
    }
    if (group == 0) reinterpret_cast<uint16_t*>(tile + 832)[g * 2 + half] = row < 0 ? 0 : half_word(block + 208);
  } else if constexpr (kLayout == Layout::kInt8G32) {
    const int64_t at = static_cast<int64_t>(row) * slab.groups + col / 32 + group;
    reinterpret_cast<uint16_t*>(tile + 1024)[lane] = row < 0 ? 0 : reinterpret_cast<const uint16_t*>(slab.scale)[at];
  } else if (group == 0) {  // kInt8G64
    const int64_t at = static_cast<int64_t>(row) * slab.groups + col / slab.group;
    float scale = 0;
    if (row >= 0 && slab.scale_f32) scale = reinterpret_cast<const float*>(slab.scale)[at];
    if (row >= 0 && !slab.scale_f32) {
      scale = __uint_as_float(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(slab.scale)[at]) << 16);
    }
    reinterpret_cast<float*>(tile + 1024)[g * 2 + half] = scale;
  }
}

// A warp for each weight tile, in the order of memory. out: the first row tile of the slab.
template <Layout kLayout>
__global__ void pack_kernel(Slab slab, uint8_t* out, int tile_bytes, int col_tiles, int64_t count) {
  const int lane = threadIdx.x % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (index >= count) return;
  const int block = static_cast<int>(index % kRowTileTiles);
  const int col = static_cast<int>(index / kRowTileTiles % col_tiles) * kWeightTileCols;
  const int first = static_cast<int>(index / kRowTileTiles / col_tiles) * kRowTileRows + block * kWeightTileRows;
  uint8_t* tile = out + index * tile_bytes;
  const int rows[2] = {slab.row(first + lane / 4), slab.row(first + lane / 4 + 8)};
  pack_codes<kLayout>(slab, tile, lane, rows, col);
  pack_scales<kLayout>(slab, tile, lane, first, col);
}

template <Layout kLayout>
void pack(const Slab& slab, uint8_t* out, int col_tiles, int64_t row_tiles, cudaStream_t stream) {
  const int64_t count = row_tiles * col_tiles * kRowTileTiles;
  pack_kernel<kLayout><<<static_cast<unsigned>((count + 7) / 8), 256, 0, stream>>>(
      slab, out, weight_tile_bytes(kLayout), col_tiles, count);
  CUDA_CHECK(cudaGetLastError());
}

void pack(Layout layout, const Slab& slab, uint8_t* out, int col_tiles, int64_t row_tiles, cudaStream_t stream) {
  switch (layout) {
    case Layout::kInt4G32:
      return pack<Layout::kInt4G32>(slab, out, col_tiles, row_tiles, stream);
    case Layout::kInt4G64:
      return pack<Layout::kInt4G64>(slab, out, col_tiles, row_tiles, stream);
    case Layout::kInt4G32Frac:
      return pack<Layout::kInt4G32Frac>(slab, out, col_tiles, row_tiles, stream);
    case Layout::kInt4G64Frac:
      return pack<Layout::kInt4G64Frac>(slab, out, col_tiles, row_tiles, stream);
    case Layout::kQ4_0:
      return pack<Layout::kQ4_0>(slab, out, col_tiles, row_tiles, stream);
    case Layout::kQ4_K:
      return pack<Layout::kQ4_K>(slab, out, col_tiles, row_tiles, stream);
    case Layout::kQ6_K:
      return pack<Layout::kQ6_K>(slab, out, col_tiles, row_tiles, stream);
    case Layout::kInt8G32:
      return pack<Layout::kInt8G32>(slab, out, col_tiles, row_tiles, stream);
    case Layout::kInt8G64:
      return pack<Layout::kInt8G64>(slab, out, col_tiles, row_tiles, stream);
    case Layout::kQ8_0:
      return pack<Layout::kQ8_0>(slab, out, col_tiles, row_tiles, stream);
    case Layout::kBF16:
      CHECK(false);
  }
}

struct Copy {
  uint8_t* to;
  const void* from;
  int64_t bytes;
};

// Calls body(matrix, first row in it, count, first row in the result) for each matrix that has some of rows
// begin .. end - 1 of the stack.
template <typename Body>
void for_matrices(std::span<const Matrix> matrices, int64_t begin, int64_t end, Body&& body) {
  int64_t first = 0;
  for (const Matrix& matrix : matrices) {
    const int64_t from = std::max(begin, first), to = std::min(end, first + matrix.rows);
    if (from < to) body(matrix, from - first, to - from, from - begin);
    first += matrix.rows;
  }
}

}  // namespace

struct Uploader::State {
  ThreadPool threads;
  uint8_t* pinned[2] = {};
  uint8_t* device[2] = {};
  cudaEvent_t done[2] = {};
  int current = 0;

  State() {
    for (int i = 0; i < 2; ++i) {
      CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&pinned[i]), kSlabBytes));
      CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&device[i]), kSlabBytes));
      CUDA_CHECK(cudaEventCreateWithFlags(&done[i], cudaEventDisableTiming));
    }
  }
  ~State() {
    for (int i = 0; i < 2; ++i) {
      if (done[i]) cudaEventSynchronize(done[i]), cudaEventDestroy(done[i]);
      cudaFreeHost(pinned[i]);
      cudaFree(device[i]);
    }
  }

  // Switches to the other buffer and waits until it is free.
  int next() {
    current ^= 1;
    CUDA_CHECK(cudaEventSynchronize(done[current]));
    return current;
  }

  void copy(std::vector<Copy>& copies) {
    constexpr int64_t kCopyBytes = 1 << 20;
    std::vector<Copy> split;
    for (const Copy& c : copies) {
      for (int64_t at = 0; at < c.bytes; at += kCopyBytes) {
        split.push_back({c.to + at, static_cast<const uint8_t*>(c.from) + at, std::min(kCopyBytes, c.bytes - at)});
      }
    }
    threads.parallel_for(static_cast<int64_t>(split.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::memcpy(split[i].to, split[i].from, split[i].bytes);
    });
  }

  void fill_packed(const DeviceMatrix& w, std::span<const Matrix> matrices, cudaStream_t stream);
  void fill_bf16(const DeviceMatrix& w, std::span<const Matrix> matrices, cudaStream_t stream);
};

namespace {

int64_t up16(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Bytes of one row in a slab.
int64_t slab_row_bytes(const Matrix& m) {
  const int64_t groups = m.group > 0 ? m.cols / m.group : 0;
  return row_bytes(m) + groups * static_cast<int64_t>(dtype_size(m.scale.dtype)) * (m.format == Format::kInt4 ? 2 : 1);
}

// Plans the copies of `count` rows of `matrix`, from row `from`, to rows `at` .. of a slab of `rows` rows.
void plan_copies(std::vector<Copy>& copies, uint8_t* base, const Matrix& matrix, int64_t from, int64_t count,
                 int64_t at, int64_t rows) {
  const int64_t bytes = row_bytes(matrix);
  const int64_t groups = matrix.group > 0 ? matrix.cols / matrix.group : 0;
  uint8_t* scale = base + up16(rows * bytes);
  if (matrix.codes.contiguous()) {
    copies.push_back({base + at * bytes, matrix.codes.row<const uint8_t>(0) + from * bytes, count * bytes});
  } else {
    const int64_t stride = matrix.codes.stride * static_cast<int64_t>(dtype_size(matrix.codes.dtype));
    for (int64_t i = 0; i < count; ++i) {
      copies.push_back(
          {base + (at + i) * bytes, static_cast<uint8_t*>(matrix.codes.data) + (from + i) * stride, bytes});
    }
  }
  if (matrix.format == Format::kInt4) {
    uint8_t* zero = scale + up16(groups * rows * 2);
    for (int64_t g = 0; g < groups; ++g) {
      copies.push_back({scale + (g * rows + at) * 2, matrix.scale.row<const uint16_t>(g) + from, count * 2});
      copies.push_back({zero + (g * rows + at) * 2, matrix.zero.row<const uint16_t>(g) + from, count * 2});
    }
  } else if (matrix.format == Format::kInt8) {
    const int64_t item = static_cast<int64_t>(dtype_size(matrix.scale.dtype));
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* source = static_cast<uint8_t*>(matrix.scale.data) + (from + i) * matrix.scale.stride * item;
      copies.push_back({scale + (at + i) * groups * item, source, groups * item});
    }
  }
}

Slab describe(const Matrix& m, uint8_t* base, int64_t rows, int64_t half) {
  Slab slab = {};
  slab.codes = base;
  slab.row_bytes = row_bytes(m);
  slab.rows = static_cast<int>(rows), slab.half = static_cast<int>(half);
  slab.group = m.group;
  slab.groups = m.group > 0 ? static_cast<int>(m.cols / m.group) : 0;
  slab.scale = base + up16(rows * slab.row_bytes);
  slab.zero = slab.scale + up16(static_cast<int64_t>(slab.groups) * rows * 2);
  slab.scale_f32 = m.group > 0 && m.scale.dtype == DType::kF32;
  slab.scale_f16 = m.group > 0 && m.scale.dtype == DType::kF16;
  return slab;
}

}  // namespace

void Uploader::State::fill_packed(const DeviceMatrix& w, std::span<const Matrix> matrices, cudaStream_t stream) {
  const Matrix& first = matrices[0];
  const int64_t row_tiles = (w.rows + kRowTileRows - 1) / kRowTileRows;
  const int64_t per_slab = (kSlabBytes - 64) / (slab_row_bytes(first) * kRowTileRows);
  if (per_slab == 0) throw Error("a weight of " + std::to_string(w.cols) + " columns is too wide for the cuda backend");
  const int64_t row_tile_bytes = w.cols / kWeightTileCols * kRowTileTiles * weight_tile_bytes(w.layout);
  std::vector<Copy> copies;
  for (int64_t row_tile = 0; row_tile < row_tiles; row_tile += per_slab) {
    const int64_t count = std::min(per_slab, row_tiles - row_tile);
    const int i = next();
    copies.clear();
    int64_t rows, half = 0;
    if (w.paired) {
      const int64_t begin = row_tile * kRowTileRows / 2;
      half = std::min((row_tile + count) * kRowTileRows / 2, first.rows) - begin;
      rows = 2 * half;
      plan_copies(copies, pinned[i], matrices[0], begin, half, 0, rows);
      plan_copies(copies, pinned[i], matrices[1], begin, half, half, rows);
    } else {
      const int64_t begin = row_tile * kRowTileRows, end = std::min(begin + count * kRowTileRows, w.rows);
      rows = end - begin;
      for_matrices(matrices, begin, end, [&](const Matrix& matrix, int64_t from, int64_t n, int64_t at) {
        plan_copies(copies, pinned[i], matrix, from, n, at, rows);
      });
    }
    copy(copies);
    const int64_t bytes = std::min(kSlabBytes, up16(rows * slab_row_bytes(first) + 48));
    CUDA_CHECK(cudaMemcpyAsync(device[i], pinned[i], bytes, cudaMemcpyHostToDevice, stream));
    pack(w.layout, describe(first, device[i], rows, half), static_cast<uint8_t*>(w.data) + row_tile * row_tile_bytes,
         static_cast<int>(w.cols / kWeightTileCols), count, stream);
    CUDA_CHECK(cudaEventRecord(done[i], stream));
  }
}

void Uploader::State::fill_bf16(const DeviceMatrix& w, std::span<const Matrix> matrices, cudaStream_t stream) {
  const int64_t pitch = w.pitch * 2;
  const int64_t per_slab = kSlabBytes / pitch;
  if (per_slab == 0) throw Error("a weight of " + std::to_string(w.cols) + " columns is too wide for the cuda backend");
  for (int64_t begin = 0; begin < w.rows; begin += per_slab) {
    const int64_t end = std::min(w.rows, begin + per_slab);
    const int i = next();
    for_matrices(matrices, begin, end, [&](const Matrix& matrix, int64_t from, int64_t count, int64_t at) {
      threads.parallel_for(count, 16, [&](int64_t first, int64_t last) {
        std::vector<float> row(matrix.format == Format::kBF16 ? 0 : w.cols);
        for (int64_t r = first; r < last; ++r) {
          uint16_t* to = reinterpret_cast<uint16_t*>(pinned[i] + (at + r) * pitch);
          std::memset(to + w.cols, 0, pitch - w.cols * 2);
          if (matrix.format == Format::kBF16) {
            std::memcpy(to, matrix.codes.row<const uint16_t>(from + r), w.cols * 2);
          } else {
            unpack_row(matrix, from + r, row.data());
            for (int64_t c = 0; c < w.cols; ++c) to[c] = float_to_bf16(row[c]);
          }
        }
      });
    });
    CUDA_CHECK(cudaMemcpyAsync(static_cast<uint8_t*>(w.data) + begin * pitch, pinned[i], (end - begin) * pitch,
                               cudaMemcpyHostToDevice, stream));
    CUDA_CHECK(cudaEventRecord(done[i], stream));
  }
}

Uploader::Uploader() : state_(std::make_unique<State>()) {}
Uploader::~Uploader() = default;

void Uploader::fill(const DeviceMatrix& w, std::span<const Matrix> matrices, cudaStream_t stream) {
  if (w.layout == Layout::kBF16) {
    state_->fill_bf16(w, matrices, stream);
  } else {
    state_->fill_packed(w, matrices, stream);
  }
}

}  // namespace gemma4::cuda
