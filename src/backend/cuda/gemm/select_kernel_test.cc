// Which layout and which kernel: decisions that need no GPU.
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
  Int4(int64_t rows, int64_t cols, int group, float most, float one)
      : scale(rows * cols / group, float_to_bf16(0.01f)), zero(rows * cols / group, float_to_bf16(most)) {
    zero[zero.size() / 2] = float_to_bf16(one);
    matrix.format = Format::kInt4, matrix.rows = rows, matrix.cols = cols, matrix.group = group;
    matrix.scale = Tensor(scale.data(), DType::kBF16, {cols / group, rows});
    matrix.zero = Tensor(zero.data(), DType::kBF16, {cols / group, rows});
  }
  Layout layout() const { return choose_layout(std::span(&matrix, 1)); }
};

TEST(CudaChoose, WholeZeroPointsPackInto4Bits) {
  EXPECT_EQ(Int4(16, 128, 32, 7, 15).layout(), Layout::kInt4G32);
  EXPECT_EQ(Int4(16, 128, 64, 0, 8).layout(), Layout::kInt4G64);
  EXPECT_EQ(Int4(16, 256, 128, 3, 4).layout(), Layout::kInt4G64);
}

TEST(CudaChoose, OneZeroPointThatDoesNotFitKeepsThemAll) {
  for (const float one : {7.5f, 16.0f, -1.0f, NAN}) {
    EXPECT_EQ(Int4(16, 128, 32, 7, one).layout(), Layout::kInt4G32Frac) << one;
    EXPECT_EQ(Int4(16, 128, 64, 7, one).layout(), Layout::kInt4G64Frac) << one;
  }
}

TEST(CudaChoose, WhatDoesNotFitAChunkBecomesBf16) {
  EXPECT_EQ(Int4(16, 96, 32, 7, 7).layout(), Layout::kBF16);
  EXPECT_EQ(Int4(16, 128, 16, 7, 7).layout(), Layout::kBF16);
}

TEST(CudaChoose, ChunksHoldTheirWeights) {
  for (const Layout layout :
       {Layout::kInt4G32, Layout::kInt4G64, Layout::kInt4G32Frac, Layout::kInt4G64Frac, Layout::kQ4_0, Layout::kQ4_K,
        Layout::kQ6_K, Layout::kInt8G32, Layout::kInt8G64, Layout::kQ8_0}) {
    const int bytes = chunk_bytes(layout);
    EXPECT_EQ(bytes % 16, 0) << layout_name(layout);  // what the copy engine can move
    EXPECT_GE(bytes, 16 * 64 / 2) << layout_name(layout);
  }
  EXPECT_EQ(chunk_bytes(Layout::kInt4G32) * 8.0 / (16 * 64), 4.625);
}

DeviceMatrix matrix(Layout layout, int64_t rows, int64_t cols, bool paired = false) {
  DeviceMatrix w;
  w.layout = layout, w.rows = rows, w.cols = cols, w.paired = paired;
  return w;
}

TEST(CudaChoose, Kernels) {
  const Device hopper = {9, 132, true}, no_trial = {9, 132, false}, ampere = {8, 108, true};
  const DeviceMatrix packed = matrix(Layout::kInt4G32, 5376, 8192), plain = matrix(Layout::kBF16, 1152, 4304);
  EXPECT_EQ(choose_kernel(packed, 1, true, hopper), Kernel::kDecode);
  EXPECT_EQ(choose_kernel(packed, kDecodeRows, true, hopper), Kernel::kDecode);
  EXPECT_EQ(choose_kernel(packed, kDecodeRows + 1, true, hopper), Kernel::kMixed);
  EXPECT_EQ(choose_kernel(packed, 2048, true, no_trial), Kernel::kLibrary);
  EXPECT_EQ(choose_kernel(packed, 1, true, ampere), Kernel::kLibrary);
  EXPECT_EQ(choose_kernel(packed, 1, false, hopper), Kernel::kPlain);
  EXPECT_EQ(choose_kernel(plain, 64, true, hopper), Kernel::kLibrary);
  EXPECT_EQ(choose_kernel(matrix(Layout::kBF16, 37, 75), 3, true, hopper), Kernel::kPlain);
  EXPECT_EQ(choose_kernel(matrix(Layout::kInt4G32, 24, 64, true), 32, true, hopper), Kernel::kPlain);
}

TEST(CudaChoose, ScratchIsWholePanelsAndFitsAGrid) {
  EXPECT_EQ(scratch_rows(64 << 20, 5376) % 128, 0);
  EXPECT_LE(scratch_rows(64 << 20, 5376) * 5376, 64 << 20);
  EXPECT_LE(scratch_rows(64 << 20, 64), 65535);
  EXPECT_EQ(scratch_rows(1000, 5376), 128);
}

// What a program keeps of a matrix beside its bytes.
TEST(CudaChoose, AMatrixIsDescribedAndFoundAgain) {
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
