// Which layout and which kernel are chosen, and how an exported program describes a matrix. Needs no GPU.
#include "backend/cuda/gemm/select_kernel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/bf16.h"

namespace gemma4::cuda {
namespace {

// An int4 matrix of `group` columns a scale whose zero points are all `zero`, but for one.
struct Int4 {
  std::vector<uint16_t> scale, zero;
  Matrix matrix;
  Int4(int64_t rows, int64_t cols, int group, float usual, float one)
      : scale(rows * cols / group, float_to_bf16(0.01f)), zero(rows * cols / group, float_to_bf16(usual)) {
    zero[zero.size() / 2] = float_to_bf16(one);
    matrix.format = Format::kInt4, matrix.rows = rows, matrix.cols = cols, matrix.group = group;
    matrix.scale = Tensor(scale.data(), DType::kBF16, {cols / group, rows});
    matrix.zero = Tensor(zero.data(), DType::kBF16, {cols / group, rows});
  }
  Layout layout() const { return choose_layout(std::span(&matrix, 1)); }
};

TEST(CudaSelectKernel, WholeZeroPointsPackInto4Bits) {
  EXPECT_EQ(Int4(16, 128, 32, 7, 15).layout(), Layout::kInt4G32);
  EXPECT_EQ(Int4(16, 128, 64, 0, 8).layout(), Layout::kInt4G64);
  EXPECT_EQ(Int4(16, 256, 128, 3, 4).layout(), Layout::kInt4G64);
}

// GPTQ's and AWQ's scales are rounded to BF16 on packing. One type for all, or none of these layouts.
TEST(CudaSelectKernel, Int4WithScalesOfF16) {
  Int4 whole(16, 128, 64, 0, 8);
  for (uint16_t& zero : whole.zero) zero = float_to_f16(bf16_to_float(zero));
  whole.matrix.scale.dtype = whole.matrix.zero.dtype = DType::kF16;
  EXPECT_EQ(whole.layout(), Layout::kInt4G64);
  whole.zero[3] = float_to_f16(16);
  EXPECT_EQ(whole.layout(), Layout::kInt4G64Frac);
  whole.matrix.zero.dtype = DType::kBF16;
  EXPECT_EQ(whole.layout(), Layout::kBF16);
}

TEST(CudaSelectKernel, OneZeroPointThatDoesNotFitKeepsThemAll) {
  for (const float one : {7.5f, 16.0f, -1.0f, NAN}) {
    EXPECT_EQ(Int4(16, 128, 32, 7, one).layout(), Layout::kInt4G32Frac) << one;
    EXPECT_EQ(Int4(16, 128, 64, 7, one).layout(), Layout::kInt4G64Frac) << one;
  }
}

TEST(CudaSelectKernel, WhatDoesNotFitAWeightTileBecomesBf16) {
  EXPECT_EQ(Int4(16, 96, 32, 7, 7).layout(), Layout::kBF16);
  EXPECT_EQ(Int4(16, 128, 16, 7, 7).layout(), Layout::kBF16);
}

TEST(CudaSelectKernel, WeightTilesHoldTheirWeights) {
  for (const Layout layout :
       {Layout::kInt4G32, Layout::kInt4G64, Layout::kInt4G32Frac, Layout::kInt4G64Frac, Layout::kQ4_0, Layout::kQ4_K,
        Layout::kQ6_K, Layout::kInt8G32, Layout::kInt8G64, Layout::kQ8_0}) {
    const int bytes = weight_tile_bytes(layout);
    EXPECT_EQ(bytes % 16, 0) << layout_name(layout);  // what TMA can copy
    EXPECT_GE(bytes, 16 * 64 / 2) << layout_name(layout);
  }
  EXPECT_EQ(weight_tile_bytes(Layout::kInt4G32) * 8.0 / (16 * 64), 4.625);
}

DeviceMatrix matrix(Layout layout, int64_t rows, int64_t cols, bool paired = false) {
  DeviceMatrix w;
  w.layout = layout, w.rows = rows, w.cols = cols, w.paired = paired;
  return w;
}

TEST(CudaSelectKernel, Kernels) {
  const Device hopper, unchecked = {.wgmma = false}, neither = {.wgmma = false, .mma = false};
  const DeviceMatrix packed = matrix(Layout::kInt4G32, 5376, 8192), plain = matrix(Layout::kBF16, 1152, 4304);
  EXPECT_EQ(select_kernel(packed, 1, true, hopper), Kernel::kGemvInt8);
  EXPECT_EQ(select_kernel(packed, kGemvRowsMax, true, hopper), Kernel::kGemvBF16);
  EXPECT_EQ(select_kernel(packed, kGemvRowsMax + 1, true, hopper), Kernel::kGemmWgmma);
  EXPECT_EQ(select_kernel(packed, 2048, true, unchecked), Kernel::kGemmMma);
  EXPECT_EQ(select_kernel(packed, 2048, true, neither), Kernel::kCublasLtUnpack);
  EXPECT_EQ(select_kernel(packed, 1, true, unchecked), Kernel::kGemvInt8);
  EXPECT_EQ(select_kernel(packed, 1, false, hopper), Kernel::kGemvNaive);
  EXPECT_EQ(select_kernel(plain, 64, true, hopper), Kernel::kCublasLt);
  EXPECT_EQ(select_kernel(plain, 64, true, hopper, DType::kF16), Kernel::kCublasLtFloat16);
  EXPECT_EQ(select_kernel(plain, 64, false, hopper, DType::kF16), Kernel::kGemvNaive);
  EXPECT_EQ(select_kernel(matrix(Layout::kBF16, 37, 75), 3, true, hopper), Kernel::kGemvNaive);
  EXPECT_EQ(select_kernel(matrix(Layout::kInt4G32, 24, 64, true), 32, true, hopper), Kernel::kGemvNaive);
}

TEST(CudaSelectKernel, KernelsForFewRows) {
  const Device hopper, small = {.shared_max = 64 << 10};
  const Device int8 = {.gemv = GemvVariant::kInt8}, bf16 = {.gemv = GemvVariant::kBF16};
  const DeviceMatrix int4 = matrix(Layout::kInt4G64, 5376, 8192), hqq = matrix(Layout::kInt4G32Frac, 5376, 8192);
  EXPECT_EQ(select_kernel(int4, kGemvInt8RowsBest, true, hopper), Kernel::kGemvInt8);
  EXPECT_EQ(select_kernel(int4, kGemvInt8RowsBest + 1, true, hopper), Kernel::kGemvBF16);
  EXPECT_EQ(select_kernel(hqq, 1, true, hopper), Kernel::kGemvBF16);
  EXPECT_EQ(select_kernel(int4, 1, true, small), Kernel::kGemvBF16);
  EXPECT_EQ(select_kernel(int4, kGemvInt8RowsMax, true, int8), Kernel::kGemvInt8);
  EXPECT_EQ(select_kernel(int4, kGemvInt8RowsMax + 1, true, int8), Kernel::kGemvBF16);
  EXPECT_EQ(select_kernel(hqq, 1, true, int8), Kernel::kGemvBF16);
  EXPECT_EQ(select_kernel(int4, 1, true, bf16), Kernel::kGemvBF16);
}

TEST(CudaSelectKernel, KernelsForManyRows) {
  const Device mma = {.gemm = GemmVariant::kMma}, library = {.gemm = GemmVariant::kLibrary};
  const Device failed = {.mma = false, .gemm = GemmVariant::kMma};
  const DeviceMatrix odd = matrix(Layout::kInt4G32, 20, 64);
  for (const Layout layout : {Layout::kInt4G32, Layout::kInt8G64, Layout::kQ6_K}) {
    const DeviceMatrix packed = matrix(layout, 5376, 8192);
    EXPECT_EQ(select_kernel(packed, kGemvRowsMax + 1, true, mma), Kernel::kGemmMma);
    EXPECT_EQ(select_kernel(packed, 2048, true, library), Kernel::kCublasLtUnpack);
    EXPECT_EQ(select_kernel(packed, 2048, true, failed), Kernel::kCublasLtUnpack);
  }
  EXPECT_EQ(select_kernel(odd, 2048, true, mma), Kernel::kGemvNaive);  // a vector of 8 outputs would be cut
  EXPECT_EQ(select_kernel(matrix(Layout::kBF16, 1152, 4304), 64, true, mma), Kernel::kCublasLt);
  for (const Kernel kernel : {Kernel::kGemmWgmma, Kernel::kGemmMma}) {
    EXPECT_TRUE(fuses_geglu(kernel));
    EXPECT_TRUE(takes_packed_prompts(kernel));
  }
  EXPECT_FALSE(fuses_geglu(Kernel::kCublasLtUnpack));
  EXPECT_FALSE(takes_packed_prompts(Kernel::kCublasLtUnpack));
}

TEST(CudaSelectKernel, ScratchIsWholeRowTilesAndFitsAGrid) {
  EXPECT_EQ(scratch_rows(64 << 20, 5376) % 128, 0);
  EXPECT_LE(scratch_rows(64 << 20, 5376) * 5376, 64 << 20);
  EXPECT_LE(scratch_rows(64 << 20, 64), 65535);
  EXPECT_EQ(scratch_rows(1000, 5376), 128);
}

// What an exported program keeps of a matrix beside its bytes.
TEST(CudaSelectKernel, AMatrixIsDescribedAndFoundAgain) {
  for (int i = 0; i <= static_cast<int>(Layout::kQ8_0); ++i) {
    for (const bool paired : {false, true}) {
      DeviceMatrix w;
      w.format = Format::kInt4, w.layout = static_cast<Layout>(i), w.rows = 160, w.cols = 192;
      w.paired = paired && w.layout != Layout::kBF16;
      set_size(w);
      const std::vector<std::byte> bytes(static_cast<size_t>(w.bytes));
      PrepackedWeight stored = describe(w, 32);
      stored.bytes = bytes;
      const DeviceMatrix again = described(stored);
      EXPECT_EQ(again.layout, w.layout);
      EXPECT_EQ(again.paired, w.paired);
      EXPECT_EQ(again.pitch, w.pitch);
      EXPECT_EQ(again.bytes, w.bytes);
      PrepackedWeight shorter = stored, taller = stored, huge = stored, odd = stored;
      shorter.bytes = stored.bytes.first(bytes.size() - 1);
      taller.rows = 1000, huge.rows = INT64_MAX, odd.layout = "int3";
      for (const PrepackedWeight& bad : {shorter, taller, huge, odd}) EXPECT_THROW(described(bad), Error);
    }
  }
}

}  // namespace
}  // namespace gemma4::cuda
