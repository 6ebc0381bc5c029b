#include "backend/cuda/gemm/select_kernel.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/bf16.h"
#include "base/check.h"

namespace gemma4::cuda {
namespace {

constexpr const char* kPaired = ", paired";  // follows the layout's name in an exported program

// Min-max quantisation gives whole zero points 0..15, which fit 4 bits; HQQ gives fractional ones.
bool whole_zeros(const Tensor& zero) {
  const bool half = zero.dtype == DType::kF16;
  if (!half && zero.dtype != DType::kBF16) return false;
  for (int64_t row = 0; row < zero.rows(); ++row) {
    const uint16_t* values = zero.row<const uint16_t>(row);
    int bad = 0;  // counted without a branch, so that the loop is vectorised
    for (int64_t i = 0; i < zero.row_size(); ++i) {
      const float value = half ? f16_to_float(values[i]) : bf16_to_float(values[i]);
      bad += !(value >= 0 && value <= 15 && value == static_cast<float>(static_cast<int>(value)));
    }
    if (bad > 0) return false;
  }
  return true;
}

Layout choose_int4(std::span<const Matrix> matrices) {
  const int group = matrices[0].group;
  if (group != 32 && group % 64 != 0) return Layout::kBF16;
  for (const Matrix& matrix : matrices) {
    const DType type = matrix.scale.dtype;  // F16 is rounded to BF16 on packing
    if ((type != DType::kBF16 && type != DType::kF16) || matrix.zero.dtype != type) return Layout::kBF16;
    if (type != matrices[0].scale.dtype) return Layout::kBF16;
  }
  const bool whole = std::ranges::all_of(matrices, [](const Matrix& matrix) { return whole_zeros(matrix.zero); });
  if (group == 32) return whole ? Layout::kInt4G32 : Layout::kInt4G32Frac;
  return whole ? Layout::kInt4G64 : Layout::kInt4G64Frac;
}

Layout choose_int8(const Matrix& matrix) {
  const bool bf16 = matrix.scale.dtype == DType::kBF16;
  if (!bf16 && matrix.scale.dtype != DType::kF32) return Layout::kBF16;
  if (matrix.group % 64 == 0) return Layout::kInt8G64;
  return matrix.group == 32 && bf16 ? Layout::kInt8G32 : Layout::kBF16;
}

// The most rows for which gemv_int8() is preferred.
int64_t gemv_int8_rows(GemvVariant variant) {
  if (variant == GemvVariant::kBF16) return 0;
  return variant == GemvVariant::kInt8 ? kGemvInt8RowsMax : kGemvInt8RowsBest;
}

}  // namespace

int weight_tile_bytes(Layout layout) {
  switch (layout) {
    case Layout::kBF16:
      return 0;
    case Layout::kInt4G32:
      return 592;
    case Layout::kInt4G64:
      return 560;
    case Layout::kInt4G32Frac:
      return 640;
    case Layout::kInt4G64Frac:
    case Layout::kQ4_0:
      return 576;
    case Layout::kQ4_K:
      return 640;
    case Layout::kQ6_K:
      return 864;
    case Layout::kInt8G32:
    case Layout::kInt8G64:
    case Layout::kQ8_0:
      return 1088;
  }
  return 0;
}

const char* layout_name(Layout layout) {
  constexpr const char* kNames[] = {"bf16", "int4 g32", "int4 g64", "int4 g32 frac", "int4 g64 frac", "q4_0",
                                    "q4_K", "q6_K",     "int8 g32", "int8 g64",      "q8_0"};
  return kNames[static_cast<int>(layout)];
}

Layout choose_layout(std::span<const Matrix> matrices) {
  const Matrix& first = matrices[0];
  if (first.cols % 64 != 0) return Layout::kBF16;
  switch (first.format) {
    case Format::kInt4:
      return choose_int4(matrices);
    case Format::kInt8:
      return choose_int8(first);
    case Format::kQ4_0:
      return Layout::kQ4_0;
    case Format::kQ8_0:
      return Layout::kQ8_0;
    case Format::kQ4_K:
      return Layout::kQ4_K;
    case Format::kQ6_K:
      return Layout::kQ6_K;
    default:
      return Layout::kBF16;
  }
}

void set_size(DeviceMatrix& w) {
  if (w.layout == Layout::kBF16) {
    w.pitch = (w.cols + 7) / 8 * 8;
    w.bytes = w.rows * w.pitch * 2;
  } else {
    const int64_t row_tiles = (w.rows + kRowTileRows - 1) / kRowTileRows;
    w.bytes = row_tiles * (w.cols / kWeightTileCols) * kRowTileTiles * weight_tile_bytes(w.layout);
  }
}

PrepackedWeight describe(const DeviceMatrix& w, int group) {
  return {w.format, w.rows, w.cols, group, std::string(layout_name(w.layout)) + (w.paired ? kPaired : ""), {}, nullptr};
}

DeviceMatrix described(const PrepackedWeight& stored) {
  constexpr int64_t kMost = INT32_MAX;  // keeps the products of set_size() within 63 bits
  DeviceMatrix w;
  w.format = stored.format, w.rows = stored.rows, w.cols = stored.cols;
  std::string name = stored.layout;
  w.paired = name.ends_with(kPaired);
  if (w.paired) name.resize(name.size() - std::string(kPaired).size());
  bool good = false;
  for (int i = 0; i <= static_cast<int>(Layout::kQ8_0); ++i) {
    if (name == layout_name(static_cast<Layout>(i))) w.layout = static_cast<Layout>(i), good = true;
  }
  const bool packed = w.layout != Layout::kBF16;
  good = good && w.rows > 0 && w.cols > 0 && w.rows <= kMost && w.cols <= kMost && (!packed || w.cols % 64 == 0) &&
         (!w.paired || (packed && w.rows % 16 == 0));
  if (good) set_size(w);
  if (!good || static_cast<uint64_t>(w.bytes) != stored.bytes.size()) {
    throw Error("a weight of a program for cuda claims to be " + std::to_string(w.rows) + " x " +
                std::to_string(w.cols) + " in the layout '" + stored.layout + "' in " +
                std::to_string(stored.bytes.size()) + " bytes, which cannot be");
  }
  return w;
}

bool has_int8_codes(Layout layout) {
  return layout == Layout::kInt4G32 || layout == Layout::kInt4G64 || layout == Layout::kQ4_0;
}

bool gemv_int8_fits(Layout layout, int64_t n, int shared_max) {
  return has_int8_codes(layout) && n <= kGemvInt8RowsMax && shared_max >= kGemvInt8Shared;
}

Kernel select_kernel(const DeviceMatrix& w, int64_t n, bool aligned, const Device& device, DType input) {
  if (!aligned || w.cols % 8 != 0) return Kernel::kGemvNaive;
  const bool packed = w.layout != Layout::kBF16;
  if (packed && n <= kGemvRowsMax) {
    return n <= gemv_int8_rows(device.gemv) && gemv_int8_fits(w.layout, n, device.shared_max) ? Kernel::kGemvInt8
                                                                                              : Kernel::kGemvBF16;
  }
  if (w.rows % (w.paired ? 16 : 8) != 0) return Kernel::kGemvNaive;
  if (device.wgmma && device.gemm == GemmVariant::kBest && packed) return Kernel::kGemmWgmma;
  if (device.mma && device.gemm != GemmVariant::kLibrary && packed) return Kernel::kGemmMma;
  if (input == DType::kF16) return Kernel::kCublasLtFloat16;
  return packed ? Kernel::kCublasLtUnpack : Kernel::kCublasLt;
}

bool fuses_geglu(Kernel kernel) {
  return kernel == Kernel::kGemvInt8 || kernel == Kernel::kGemvBF16 || takes_packed_prompts(kernel);
}

bool takes_packed_prompts(Kernel kernel) { return kernel == Kernel::kGemmWgmma || kernel == Kernel::kGemmMma; }

void run_kernel(Kernel kernel, const LinearCall& call, LinearWorkspace& workspace, cudaStream_t stream) {
  CHECK(!call.geglu || fuses_geglu(kernel));
  switch (kernel) {
    case Kernel::kGemvInt8:
      return gemv_int8(call, workspace.gemv, stream);
    case Kernel::kGemvBF16:
      return gemv_bf16(call, workspace.gemv, stream);
    case Kernel::kGemmWgmma:
      return gemm_wgmma(call, workspace.wgmma, stream);
    case Kernel::kGemmMma:
      return gemm_mma(call, workspace.mma, stream);
    case Kernel::kCublasLt:
      return gemm_cublaslt(call, workspace.cublaslt, stream);
    case Kernel::kCublasLtUnpack:
      return gemm_cublaslt_unpack(call, workspace.cublaslt, stream);
    case Kernel::kCublasLtFloat16:
      return gemm_cublaslt_float16(call, workspace.cublaslt, stream);
    case Kernel::kGemvNaive:
      return gemv_naive(call, stream);
  }
}

int64_t scratch_rows(int64_t elements, int64_t cols) {
  return std::clamp<int64_t>(elements / cols / 128, 1, 511) * 128;  // 511: a grid's second dimension ends at 65535
}

}  // namespace gemma4::cuda
