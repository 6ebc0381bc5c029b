// Packed: how the cpu backend keeps a weight matrix, as GEMM libraries (GotoBLAS, BLIS) pack theirs: in row panels.
// A panel is 32 rows (outputs). Its 32 rows lie side by side, so that one SIMD lane computes one output: no horizontal
// sums, one load brings the scales of a whole vector, and a thread reads its panels as one stream from memory. Codes
// keep their size; nothing is unpacked in memory.
//
//   kF32    [cols] [32] float
//   kF16    [cols] [32] half
//   kBF16   [cols / 2] [32] uint32: an even column in the low half, the next in the high half
//   kInt8   groups of: [32] scale, [group] [32] int8                               w = code * scale
//   kInt4   groups of: [32] scale, [32] zero, [group / 8] [32] uint32, column k    w = (code - zero) * scale
//           of eight in bits 4k .. 4k+3
//   kQ4K    groups of 256 columns: [32] half d, [32] half dmin, then 8 times       w = d * sc * code - dmin * m
//           [32] uint8 sc, [32] uint8 m, [4] [32] uint32 codes as in kInt4
//   kQ6K    groups of 256 columns: [32] half d, then 16 times [32] int8 sc,        w = d * sc * (code - 32)
//           [2] [32] uint32 low nibbles, [32] uint32 high two bits, column k of 16 in bits 2k, 2k + 1
//   kBlocks [rows] whole rows of ggml blocks as in the file; the kernel unpacks one tile at a time
//
// packed.cc: sizes, and a Packed as bytes of an exported program. pack.cc: from a matrix. unpack.cc: back to floats.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "backend/cpu/memory.h"
#include "base/threads.h"
#include "quant/matrix.h"

namespace gemma4::cpu {

constexpr int64_t kPanel = 32;                                                // rows of a panel
constexpr int64_t kSub4K = kPanel * (2 + 16), kSub6K = kPanel * (1 + 8 + 4);  // bytes of 32 and of 16 columns

enum class Layout : uint8_t { kF32, kF16, kBF16, kInt8, kInt4, kQ4K, kQ6K, kBlocks };

struct Packed {
  Layout layout = Layout::kF32;
  Format format = Format::kNone;   // of the matrix that was packed
  DType scale_type = DType::kF32;  // of kInt8 (BF16, F16, F32) and kInt4 (BF16, F16)
  int64_t rows = 0, cols = 0;
  int64_t group = 0;        // columns that share a header; all of them where there is none
  int64_t group_bytes = 0;  // header and codes
  int64_t header_bytes = 0;
  int64_t panels = 0, panel_bytes = 0;  // kBlocks: panel_bytes is 32 rows
  const uint8_t* data = nullptr;        // [panels] [panel_bytes], on a cache line
  std::shared_ptr<const void> storage;  // what `data` lies in: a Storage, or the mapped file of a program

  const uint8_t* panel(int64_t i) const { return data + i * panel_bytes; }
  int64_t bytes() const { return panels * panel_bytes; }
};

// Sets all sizes of `p` for a matrix with the format, group and scale type of `m`. Needs p.rows and p.cols.
void set_layout(Packed& p, const Matrix& m);

// `matrices` stacked along their rows; all have one format, group and number of columns.
std::shared_ptr<const Packed> pack(std::span<const Matrix> matrices, ThreadPool& pool,
                                   std::shared_ptr<std::atomic<int64_t>> used);

// Names what the bytes of a Packed depend on beside its description. That does not include the SIMD target: lanes are
// outputs, and every vector width that divides 32 reads the same panel.
inline constexpr const char* kLayoutName = "panels of 32, version 1";

// A Packed as an exported program stores it, and back. The bytes are used where they lie. Throws Error if their number
// does not follow from the description.
PrepackedWeight serialize(const std::shared_ptr<const Packed>& w, int group);
std::shared_ptr<const Packed> load_prepacked(const PrepackedWeight& stored);

// Row `row` in float32, equal to what unpack_row() (quant/pack.h) computes.
void unpack_packed_row(const Packed& w, int64_t row, float* out);

}  // namespace gemma4::cpu
