#include "backend/cpu/packed.h"

#include <string>

#include "base/bytes.h"

namespace gemma4::cpu {
namespace {

const char* scale_name(DType type) {
  return type == DType::kF32 ? "float32" : type == DType::kF16 ? "float16" : "bfloat16";
}

std::string scale_layout(const Packed& p) {
  const bool scaled = p.layout == Layout::kInt4 || p.layout == Layout::kInt8;
  return scaled ? scale_name(p.scale_type) : "";
}

// Can there be such a matrix? Sizes below 2^31 keep the products in set_layout() within 64 bits.
bool describes(const Matrix& m) {
  constexpr int64_t kMost = INT32_MAX;
  if (m.format == Format::kNone || m.rows < 1 || m.cols < 1 || m.rows > kMost || m.cols > kMost) return false;
  if (m.format == Format::kInt4) {
    return m.group > 0 && m.group % 8 == 0 && m.cols % m.group == 0 && m.scale.dtype != DType::kF32;
  }
  if (m.format == Format::kInt8) return m.group > 0 && m.cols % m.group == 0;
  return m.cols % info(m.format).block_cols == 0;
}

}  // namespace

void set_layout(Packed& p, const Matrix& m) {
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

PrepackedWeight serialize(const std::shared_ptr<const Packed>& w, int group) {
  const auto* bytes = reinterpret_cast<const std::byte*>(w->data);
  return {w->format, w->rows, w->cols, group, scale_layout(*w), {bytes, static_cast<size_t>(w->bytes())}, w};
}

std::shared_ptr<const Packed> load_prepacked(const PrepackedWeight& stored) {
  Matrix m;
  m.format = stored.format, m.rows = stored.rows, m.cols = stored.cols, m.group = stored.group;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (stored.layout == scale_name(type)) m.scale.dtype = type;
  }
  auto p = std::make_shared<Packed>();
  p->format = m.format, p->rows = m.rows, p->cols = m.cols;
  bool good = describes(m);
  if (good) set_layout(*p, m);
  good = good && scale_layout(*p) == stored.layout;
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

}  // namespace gemma4::cpu
