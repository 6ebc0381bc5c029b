#include "backend/cpu/packed.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/bf16.h"
#include "base/bytes.h"
#include "quant/blocks.h"

namespace gemma4::cpu {

Storage::Storage(int64_t bytes, std::shared_ptr<std::atomic<int64_t>> used) : bytes_(bytes), used_(std::move(used)) {
  constexpr int64_t kHuge = int64_t{2} << 20;
  const int64_t align = bytes >= 2 * kHuge ? kHuge : 64;
  const int64_t size = std::max(align, (bytes + align - 1) / align * align);
  data_ = static_cast<uint8_t*>(std::aligned_alloc(align, size));
  if (data_ == nullptr) throw Error("out of memory: " + std::to_string(bytes >> 20) + " MiB were asked for");
  if (align == kHuge) madvise(data_, size, MADV_HUGEPAGE);
  std::memset(data_, 0, size);
  used_->fetch_add(bytes_);
}

Storage::~Storage() {
  std::free(data_);
  used_->fetch_sub(bytes_);
}

namespace {

struct Source {  // row `row` of part `part`
  const Matrix* part;
  int64_t row;
};

Source find(std::span<const Matrix> parts, int64_t row) {
  for (const Matrix& part : parts) {
    if (row < part.rows) return {&part, row};
    row -= part.rows;
  }
  CHECK(false);
  return {};
}

template <typename T>
T* at(uint8_t* base, int64_t index) {
  return reinterpret_cast<T*>(base) + index;
}

float scale_value(DType type, const void* values, int64_t i) {
  if (type == DType::kF32) return static_cast<const float*>(values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  return type == DType::kBF16 ? bf16_to_float(bits) : f16_to_float(bits);
}

void copy_element(const Tensor& from, int64_t row, int64_t col, uint8_t* to) {
  const size_t size = dtype_size(from.dtype);
  std::memcpy(to, static_cast<const char*>(from.data) + (row * from.stride + col) * size, size);
}

void pack_elements(const Packed& p, Source s, uint8_t* panel, int64_t lane) {
  const void* row = static_cast<const char*>(s.part->codes.data) +
                    s.row * s.part->codes.stride * static_cast<int64_t>(dtype_size(s.part->codes.dtype));
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
  const int8_t* codes = s.part->codes.row<const int8_t>(s.row);
  for (int64_t g = 0; g < p.cols / p.group; ++g, panel += p.group_bytes) {
    copy_element(s.part->scale, s.row, g, panel + lane * scale_size);
    for (int64_t k = 0; k < p.group; ++k) panel[p.header_bytes + k * kPanel + lane] = codes[g * p.group + k];
  }
}

// Eight codes of one row, low nibble first, are the bytes of a little-endian word already.
void pack_int4(const Packed& p, Source s, uint8_t* panel, int64_t lane) {
  const uint8_t* codes = s.part->codes.row<const uint8_t>(s.row);
  for (int64_t g = 0; g < p.cols / p.group; ++g, panel += p.group_bytes) {
    copy_element(s.part->scale, g, s.row, panel + lane * 2);
    copy_element(s.part->zero, g, s.row, panel + (kPanel + lane) * 2);
    for (int64_t k = 0; k < p.group; k += 8) {
      std::memcpy(panel + p.header_bytes + (k / 8 * kPanel + lane) * 4, codes + (g * p.group + k) / 2, 4);
    }
  }
}

// Q8_0 and Q4_0: 32 columns with a half-precision scale; a Q4_0 code minus 8. Byte j of a Q4_0 block holds columns j
// and j + 16 (docs/FORMATS.md).
void pack_q8_0(const Packed& p, Source s, uint8_t* panel, int64_t lane) {
  const uint8_t* block = s.part->codes.row<const uint8_t>(s.row);
  for (int64_t g = 0; g < p.cols / p.group; ++g, panel += p.group_bytes, block += 34) {
    std::memcpy(panel + lane * 2, block, 2);
    for (int64_t k = 0; k < p.group; ++k) panel[p.header_bytes + k * kPanel + lane] = block[2 + k];
  }
}

void pack_q4_0(const Packed& p, Source s, uint8_t* panel, int64_t lane) {
  const uint16_t eight = float_to_f16(8);
  const uint8_t* block = s.part->codes.row<const uint8_t>(s.row);
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
  const uint8_t* block = s.part->codes.row<const uint8_t>(s.row);
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
  const uint8_t* block = s.part->codes.row<const uint8_t>(s.row);
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

void choose_layout(Packed& p, const Matrix& m) {
  p.group = p.cols;
  switch (m.format) {
    case Format::kF32:
      p.layout = Layout::kF32;
      p.group_bytes = p.cols * kPanel * 4;
      break;
    case Format::kF16:
      p.layout = Layout::kF16;
      p.group_bytes = p.cols * kPanel * 2;
      break;
    case Format::kBF16:
      p.layout = Layout::kBF16;
      p.group_bytes = (p.cols + 1) / 2 * kPanel * 4;
      break;
    case Format::kInt8:
    case Format::kQ8_0:
      p.layout = Layout::kInt8;
      p.group = m.format == Format::kInt8 ? m.group : 32;
      p.scale_type = m.format == Format::kInt8 ? m.scale.dtype : DType::kF16;
      p.header_bytes = kPanel * static_cast<int64_t>(dtype_size(p.scale_type));
      p.group_bytes = p.header_bytes + p.group * kPanel;
      break;
    case Format::kInt4:
    case Format::kQ4_0:
      p.layout = Layout::kInt4;
      p.group = m.format == Format::kInt4 ? m.group : 32;
      p.scale_type = m.format == Format::kInt4 ? m.scale.dtype : DType::kF16;
      p.header_bytes = kPanel * 4;
      p.group_bytes = p.header_bytes + p.group * kPanel / 2;
      break;
    case Format::kQ4_K:
      p.layout = Layout::kQ4K;
      p.group = 256;
      p.header_bytes = kPanel * 4;
      p.group_bytes = p.header_bytes + 8 * kSub4K;
      break;
    case Format::kQ6_K:
      p.layout = Layout::kQ6K;
      p.group = 256;
      p.header_bytes = kPanel * 2;
      p.group_bytes = p.header_bytes + 16 * kSub6K;
      break;
    default:
      p.layout = Layout::kBlocks;
      p.group_bytes = row_bytes(m) * kPanel;
  }
  p.panels = (p.rows + kPanel - 1) / kPanel;
  p.panel_bytes = p.group_bytes * (p.cols / p.group);
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
      std::memcpy(panel + lane * (p.panel_bytes / kPanel), s.part->codes.row<const uint8_t>(s.row),
                  p.panel_bytes / kPanel);
  }
}

void check_parts(std::span<const Matrix> parts) {
  CHECK(!parts.empty());
  const Matrix& first = parts.front();
  for (const Matrix& part : parts) {
    CHECK(!part.uploaded && part.format == first.format && part.cols == first.cols && part.group == first.group);
    CHECK(part.format != Format::kInt8 || part.scale.dtype == first.scale.dtype);
  }
  const bool grouped = first.format == Format::kInt4 || first.format == Format::kInt8;
  CHECK(!grouped || (first.group > 0 && first.cols % first.group == 0));
  if (first.format == Format::kInt4 && (first.group % 8 != 0 || first.scale.dtype != DType::kBF16)) {
    throw Error(
        "the cpu backend reads int4 weights in groups of a multiple of 8 columns with BF16 scales, not groups of " +
        std::to_string(first.group) + " with " + dtype_name(first.scale.dtype) + " scales");
  }
}

const char* scale_word(DType type) {
  return type == DType::kF32 ? "float32" : type == DType::kF16 ? "float16" : "bfloat16";
}

std::string layout_word(const Packed& p) {
  const bool scaled = p.layout == Layout::kInt4 || p.layout == Layout::kInt8;
  return scaled ? scale_word(p.scale_type) : "";
}

// Could there be such a matrix? Sizes of 31 bits keep the products of choose_layout() within 64.
bool describes(const Matrix& m) {
  constexpr int64_t kMost = INT32_MAX;
  if (m.format == Format::kNone || m.rows < 1 || m.cols < 1 || m.rows > kMost || m.cols > kMost) return false;
  if (m.format == Format::kInt4) {
    return m.group > 0 && m.group % 8 == 0 && m.cols % m.group == 0 && m.scale.dtype == DType::kBF16;
  }
  if (m.format == Format::kInt8) return m.group > 0 && m.cols % m.group == 0;
  return m.cols % info(m.format).block_cols == 0;
}

uint32_t bits(const uint8_t* words, int64_t word, int64_t lane, int64_t shift, uint32_t mask) {
  uint32_t value;
  std::memcpy(&value, words + (word * kPanel + lane) * 4, 4);
  return value >> shift & mask;
}

float int4_element(const Packed& p, const uint8_t* group, int64_t k, int64_t lane) {
  const float code = static_cast<float>(bits(group + p.header_bytes, k / 8, lane, k % 8 * 4, 15));
  return (code - scale_value(p.scale_type, group, kPanel + lane)) * scale_value(p.scale_type, group, lane);
}

float q4_k_element(const Packed& p, const uint8_t* group, int64_t k, int64_t lane) {
  const uint8_t* sub = group + p.header_bytes + k / 32 * kSub4K;
  const float scale = scale_value(DType::kF16, group, lane) * static_cast<float>(sub[lane]);
  const float least = scale_value(DType::kF16, group, kPanel + lane) * static_cast<float>(sub[kPanel + lane]);
  return scale * static_cast<float>(bits(sub + 2 * kPanel, k % 32 / 8, lane, k % 8 * 4, 15)) - least;
}

float q6_k_element(const Packed& p, const uint8_t* group, int64_t k, int64_t lane) {
  const uint8_t* sub = group + p.header_bytes + k / 16 * kSub6K;
  const float scale = scale_value(DType::kF16, group, lane) * static_cast<float>(static_cast<int8_t>(sub[lane]));
  const uint32_t low = bits(sub + kPanel, k % 16 / 8, lane, k % 8 * 4, 15);
  const uint32_t high = bits(sub + 9 * kPanel, 0, lane, k % 16 * 2, 3);
  return scale * static_cast<float>(static_cast<int>(low | high << 4) - 32);
}

float element(const Packed& p, const uint8_t* panel, int64_t col, int64_t lane) {
  const uint8_t* group = panel + col / p.group * p.group_bytes;
  const int64_t k = col % p.group;
  switch (p.layout) {
    case Layout::kF32:
      return reinterpret_cast<const float*>(panel)[col * kPanel + lane];
    case Layout::kF16:
      return f16_to_float(reinterpret_cast<const uint16_t*>(panel)[col * kPanel + lane]);
    case Layout::kBF16:
      return bf16_to_float(reinterpret_cast<const uint16_t*>(panel)[(col / 2 * kPanel + lane) * 2 + col % 2]);
    case Layout::kInt8:
      return static_cast<float>(static_cast<int8_t>(group[p.header_bytes + k * kPanel + lane])) *
             scale_value(p.scale_type, group, lane);
    case Layout::kQ4K:
      return q4_k_element(p, group, k, lane);
    case Layout::kQ6K:
      return q6_k_element(p, group, k, lane);
    default:
      return int4_element(p, group, k, lane);
  }
}

}  // namespace

std::shared_ptr<const Packed> pack(std::span<const Matrix> parts, ThreadPool& pool,
                                   std::shared_ptr<std::atomic<int64_t>> used) {
  check_parts(parts);
  auto p = std::make_shared<Packed>();
  p->format = parts.front().format;
  p->cols = parts.front().cols;
  for (const Matrix& part : parts) p->rows += part.rows;
  choose_layout(*p, parts.front());
  const auto storage = std::make_shared<Storage>(p->bytes(), std::move(used));
  p->data = storage->data();
  p->storage = storage;
  pool.parallel_for(p->rows, kPanel, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      pack_row(*p, find(parts, row), storage->data() + row / kPanel * p->panel_bytes, row % kPanel);
    }
  });
  return p;
}

PrepackedWeight store(const std::shared_ptr<const Packed>& w, int group) {
  const auto* bytes = reinterpret_cast<const std::byte*>(w->data);
  return {w->format, w->rows, w->cols, group, layout_word(*w), {bytes, static_cast<size_t>(w->bytes())}, w};
}

std::shared_ptr<const Packed> load_prepacked(const PrepackedWeight& stored) {
  Matrix m;
  m.format = stored.format, m.rows = stored.rows, m.cols = stored.cols, m.group = stored.group;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (stored.layout == scale_word(type)) m.scale.dtype = type;
  }
  auto p = std::make_shared<Packed>();
  p->format = m.format, p->rows = m.rows, p->cols = m.cols;
  bool good = describes(m);
  if (good) choose_layout(*p, m);
  good = good && layout_word(*p) == stored.layout;
  if (!good || static_cast<uint64_t>(checked_mul(p->panels, p->panel_bytes, "a weight")) != stored.bytes.size()) {
    throw Error("a weight of a program for cpu claims to be " + std::to_string(m.rows) + " x " +
                std::to_string(m.cols) + " of " + std::string(info(m.format).name) + " with " +
                (stored.layout.empty() ? "no scales" : "scales " + stored.layout) + " in " +
                std::to_string(stored.bytes.size()) + " bytes, which cannot be");
  }
  CHECK(reinterpret_cast<uintptr_t>(stored.bytes.data()) % 64 == 0);
  p->data = reinterpret_cast<const uint8_t*>(stored.bytes.data());
  p->storage = stored.hold;
  return p;
}

void unpack_packed_row(const Packed& p, int64_t row, float* out) {
  CHECK(row >= 0 && row < p.rows);
  const uint8_t* panel = p.panel(row / kPanel);
  const int64_t lane = row % kPanel;
  if (p.layout == Layout::kBlocks) {
    return unpack_blocks(p.format, panel + lane * (p.panel_bytes / kPanel), p.cols, out);
  }
  for (int64_t col = 0; col < p.cols; ++col) out[col] = element(p, panel, col, lane);
}

}  // namespace gemma4::cpu
