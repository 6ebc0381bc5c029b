// Packing: how a row of each format becomes a lane of a panel.
#include "backend/cpu/packed.h"

#include <cstring>
#include <string>

#include "base/bf16.h"

namespace gemma4::cpu {
namespace {

struct Source {  // one row of one of the stacked matrices
  const Matrix* matrix;
  int64_t row;
};

Source find(std::span<const Matrix> matrices, int64_t row) {
  for (const Matrix& m : matrices) {
    if (row < m.rows) return {&m, row};
    row -= m.rows;
  }
  CHECK(false);
  return {};
}

template <typename T>
T* at(uint8_t* base, int64_t index) {
  return reinterpret_cast<T*>(base) + index;
}

void copy_element(const Tensor& from, int64_t row, int64_t col, uint8_t* to) {
  const size_t size = dtype_size(from.dtype);
  std::memcpy(to, static_cast<const char*>(from.data) + (row * from.stride + col) * size, size);
}

void pack_elements(const Packed& p, Source s, uint8_t* panel, int64_t lane) {
  const void* row = static_cast<const char*>(s.matrix->codes.data) +
                    s.row * s.matrix->codes.stride * static_cast<int64_t>(dtype_size(s.matrix->codes.dtype));
  for (int64_t k = 0; k < p.cols; ++k) {
    if (p.layout == Layout::kF32) {
      *at<float>(panel, k * kPanel + lane) = static_cast<const float*>(row)[k];
    } else if (p.layout == Layout::kF16) {
      *at<uint16_t>(panel, k * kPanel + lane) = static_cast<const uint16_t*>(row)[k];
    } else {
      *at<uint16_t>(panel, (k / 2 * kPanel + lane) * 2 + k % 2) = static_cast<const uint16_t*>(row)[k];
    }
  }
}

void pack_int8(const Packed& p, Source s, uint8_t* panel, int64_t lane) {
  const int64_t scale_size = dtype_size(p.scale_type);
  const int8_t* codes = s.matrix->codes.row<const int8_t>(s.row);
  for (int64_t g = 0; g < p.cols / p.group; ++g, panel += p.group_bytes) {
    copy_element(s.matrix->scale, s.row, g, panel + lane * scale_size);
    for (int64_t k = 0; k < p.group; ++k) panel[p.header_bytes + k * kPanel + lane] = codes[g * p.group + k];
  }
}

// Eight codes of one row, low nibble first, are the bytes of a little-endian word already.
void pack_int4(const Packed& p, Source s, uint8_t* panel, int64_t lane) {
  const uint8_t* codes = s.matrix->codes.row<const uint8_t>(s.row);
  for (int64_t g = 0; g < p.cols / p.group; ++g, panel += p.group_bytes) {
    copy_element(s.matrix->scale, g, s.row, panel + lane * 2);
    copy_element(s.matrix->zero, g, s.row, panel + (kPanel + lane) * 2);
    for (int64_t k = 0; k < p.group; k += 8) {
      std::memcpy(panel + p.header_bytes + (k / 8 * kPanel + lane) * 4, codes + (g * p.group + k) / 2, 4);
    }
  }
}

// Q8_0 and Q4_0: 32 columns with a half-precision scale; a Q4_0 code minus 8. Byte j of a Q4_0 block holds columns j
// and j + 16 (docs/FORMATS.md).
void pack_q8_0(const Packed& p, Source s, uint8_t* panel, int64_t lane) {
  const uint8_t* block = s.matrix->codes.row<const uint8_t>(s.row);
  for (int64_t g = 0; g < p.cols / p.group; ++g, panel += p.group_bytes, block += 34) {
    std::memcpy(panel + lane * 2, block, 2);
    for (int64_t k = 0; k < p.group; ++k) panel[p.header_bytes + k * kPanel + lane] = block[2 + k];
  }
}

void pack_q4_0(const Packed& p, Source s, uint8_t* panel, int64_t lane) {
  const uint16_t eight = float_to_f16(8);
  const uint8_t* block = s.matrix->codes.row<const uint8_t>(s.row);
  for (int64_t g = 0; g < p.cols / p.group; ++g, panel += p.group_bytes, block += 18) {
    std::memcpy(panel + lane * 2, block, 2);
    std::memcpy(panel + (kPanel + lane) * 2, &eight, 2);
    for (int64_t k = 0; k < 32; k += 8) {
      uint32_t word = 0;
      for (int64_t i = 0; i < 8; ++i) {
        const int64_t col = k + i;
        const uint32_t code = col < 16 ? block[2 + col] & 15 : block[2 + col - 16] >> 4;
        word |= code << (4 * i);
      }
      std::memcpy(panel + p.header_bytes + (k / 8 * kPanel + lane) * 4, &word, 4);
    }
  }
}

// Q4_K: 8 scales and 8 minimums of 6 bits in 12 bytes; byte j of a run of 32 holds columns j and j + 32 of 64.
void pack_q4_k(const Packed& p, Source s, uint8_t* panel, int64_t lane) {
  const uint8_t* block = s.matrix->codes.row<const uint8_t>(s.row);
  for (int64_t g = 0; g < p.cols / p.group; ++g, panel += p.group_bytes, block += 144) {
    std::memcpy(panel + lane * 2, block, 2);
    std::memcpy(panel + (kPanel + lane) * 2, block + 2, 2);
    const uint8_t *packed = block + 4, *codes = block + 16;
    for (int64_t i = 0; i < 8; ++i) {
      uint8_t* sub = panel + p.header_bytes + i * kSub4K;
      const bool low = i < 4;
      sub[lane] = low ? packed[i] & 63 : (packed[i + 4] & 15) | (packed[i - 4] >> 6 << 4);
      sub[kPanel + lane] = low ? packed[i + 4] & 63 : (packed[i + 4] >> 4) | (packed[i] >> 6 << 4);
      for (int64_t k = 0; k < 32; ++k) {
        const uint32_t code = codes[i / 2 * 32 + k] >> (i % 2 * 4) & 15;
        *at<uint32_t>(sub + 2 * kPanel, k / 8 * kPanel + lane) |= code << (k % 8 * 4);
      }
    }
  }
}

// Q6_K: in each half of 128 columns, column k has its low nibble in byte k % 64 of 64 (the low one for k < 64) and its
// high bits in byte k % 32 of 32, at bit 2 (k / 32).
void pack_q6_k(const Packed& p, Source s, uint8_t* panel, int64_t lane) {
  const uint8_t* block = s.matrix->codes.row<const uint8_t>(s.row);
  for (int64_t g = 0; g < p.cols / p.group; ++g, panel += p.group_bytes, block += 210) {
    std::memcpy(panel + lane * 2, block + 208, 2);
    for (int64_t k = 0; k < 256; ++k) {
      uint8_t* sub = panel + p.header_bytes + k / 16 * kSub6K;
      sub[lane] = block[192 + k / 16];
      const int64_t half = k / 128, i = k % 128;
      const uint32_t low = block[half * 64 + i % 64] >> (i / 64 * 4) & 15;
      const uint32_t high = block[128 + half * 32 + i % 32] >> (i / 32 * 2) & 3;
      *at<uint32_t>(sub + kPanel, k % 16 / 8 * kPanel + lane) |= low << (k % 8 * 4);
      *at<uint32_t>(sub + kPanel * 9, lane) |= high << (k % 16 * 2);
    }
  }
}

void pack_row(const Packed& p, Source s, uint8_t* panel, int64_t lane) {
  switch (p.layout) {
    case Layout::kF32:
    case Layout::kF16:
    case Layout::kBF16:
      return pack_elements(p, s, panel, lane);
    case Layout::kInt8:
      return p.format == Format::kQ8_0 ? pack_q8_0(p, s, panel, lane) : pack_int8(p, s, panel, lane);
    case Layout::kInt4:
      return p.format == Format::kQ4_0 ? pack_q4_0(p, s, panel, lane) : pack_int4(p, s, panel, lane);
    case Layout::kQ4K:
      return pack_q4_k(p, s, panel, lane);
    case Layout::kQ6K:
      return pack_q6_k(p, s, panel, lane);
    case Layout::kBlocks:
      std::memcpy(panel + lane * (p.panel_bytes / kPanel), s.matrix->codes.row<const uint8_t>(s.row),
                  p.panel_bytes / kPanel);
  }
}

void check_alike(std::span<const Matrix> matrices) {
  CHECK(!matrices.empty());
  const Matrix& first = matrices.front();
  for (const Matrix& m : matrices) {
    CHECK(!m.uploaded && m.format == first.format && m.cols == first.cols && m.group == first.group);
    CHECK(m.scale.dtype == first.scale.dtype && m.zero.dtype == first.zero.dtype);
  }
  const bool grouped = first.format == Format::kInt4 || first.format == Format::kInt8;
  CHECK(!grouped || (first.group > 0 && first.cols % first.group == 0));
  if (first.format == Format::kInt4 && (first.group % 8 != 0 || dtype_size(first.scale.dtype) != 2)) {
    throw Error(
        "the cpu backend reads int4 weights in groups of a multiple of 8 columns with BF16 or F16 scales, not groups "
        "of " +
        std::to_string(first.group) + " with " + dtype_name(first.scale.dtype) + " scales");
  }
}

}  // namespace

std::shared_ptr<const Packed> pack(std::span<const Matrix> matrices, ThreadPool& pool,
                                   std::shared_ptr<std::atomic<int64_t>> used) {
  check_alike(matrices);
  auto p = std::make_shared<Packed>();
  p->format = matrices.front().format;
  p->cols = matrices.front().cols;
  for (const Matrix& m : matrices) p->rows += m.rows;
  set_layout(*p, matrices.front());
  const auto storage = std::make_shared<Storage>(p->bytes(), std::move(used));
  p->data = storage->data();
  p->storage = storage;
  pool.parallel_for(p->rows, kPanel, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      pack_row(*p, find(matrices, row), storage->data() + row / kPanel * p->panel_bytes, row % kPanel);
    }
  });
  return p;
}

}  // namespace gemma4::cpu
