// The linear layers of the CUDA backend: uploads a weight matrix to the device and multiplies by it. cuda_backend.cc
// calls it. After upload nothing here allocates, waits or copies to the host, so every call can be captured in a graph.
// (The exception is cuBLASLt, which is loaded when it is first needed.)
//
// A quantised matrix is repacked at upload into weight tiles of 16 rows x 64 columns in the order of the tensor core's
// A operand (docs/cuda/design.md): codes, then scales, then zero points. Decode reads these bytes once, prefill feeds
// the same bytes to the tensor cores. Formats that are not packed are kept as bfloat16, row-major.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/tensor.h"
#include "quant/matrix.h"

namespace gemma4::cuda {

// What the device bytes mean. Packed layouts hold (rows padded to 128) x cols values in weight tiles of 16 x 64.
enum class Layout : uint8_t {
  kBF16,         // row-major [rows, pitch], 16 bits a weight
  kInt4G32,      // 4-bit codes, BF16 scale and whole 4-bit zero point for each 32 columns: 4.63 bits
  kInt4G64,      // the same for groups of 64 and more (the scale is repeated for each 64): 4.38 bits
  kInt4G32Frac,  // zero points BF16, because some are fractional (HQQ): 5 bits
  kInt4G64Frac,  // 4.5 bits
  kQ4_0,         // 4-bit codes, F16 scale for each 32 columns, zero point 8: 4.5 bits
  kQ4_K,         // 4-bit codes; 6-bit scale and minimum for each 32, F16 d and dmin repeated for each 64: 5 bits
  kQ6_K,         // 4 + 2 bit codes, 8-bit scale for each 16, F16 d repeated for each 64: 6.75 bits
  kInt8G32,      // 8-bit codes, BF16 scale for each 32 columns: 8.5 bits
  kInt8G64,      // 8-bit codes, F32 scale for each 64 columns (groups of 64 and more, per-row scales): 8.5 bits
  kQ8_0,         // 8-bit codes, F16 scale for each 32 columns: 8.5 bits
};

// Packed order: row tiles of 128 rows; in each its column ranges of 64; in each its 8 weight tiles.
constexpr int kWeightTileRows = 16, kWeightTileCols = 64, kRowTileRows = 128;
constexpr int kRowTileTiles = kRowTileRows / kWeightTileRows;  // weight tiles of a row tile in one column range

struct DeviceMatrix {
  Format format = Format::kNone;  // of the checkpoint
  Layout layout = Layout::kBF16;
  int64_t rows = 0, cols = 0;
  int64_t pitch = 0;    // kBF16: elements from one row to the next
  bool paired = false;  // two matrices of equal height, interleaved 8 rows each: gate and up, for linear_geglu
  void* data = nullptr;
  int64_t bytes = 0;
};

// Device memory for a weight; throws Error when there is none left. 256-byte aligned.
using Allocate = std::function<void*(int64_t bytes)>;

enum class GemvVariant;  // select_kernel.h
enum class GemmVariant;  // select_kernel.h
struct GemvWorkspace;    // kernels.h

// One for each device: the kernels' workspaces, the cuBLASLt handle, the pinned upload buffers.
class Linear {
 public:
  explicit Linear(int device);
  ~Linear();
  Linear(const Linear&) = delete;
  Linear& operator=(const Linear&) = delete;

  // Copies the host `matrices`, stacked along rows (all of one format, cols and group), to the device in the smallest
  // layout that is exact for them. `matrices` may be unmapped on return; the device work is ordered on `stream`. The
  // first uploads of a layout are self-checked (self_check.h), which waits.
  DeviceMatrix upload(std::span<const Matrix> matrices, const Allocate& allocate, cudaStream_t stream);
  // The device bytes of an uploaded matrix. Waits.
  std::vector<std::byte> read_back(const DeviceMatrix& w, cudaStream_t stream);
  // Copies such bytes to the device again, as they are; `like` has everything but data. `bytes` may be unmapped on
  // return.
  DeviceMatrix load_prepacked(DeviceMatrix like, std::span<const std::byte> bytes, const Allocate& allocate,
                              cudaStream_t stream);
  void end_upload();  // frees the pinned buffers; upload() allocates them again when needed

  // out = x w^T. x BF16 [n, cols], or F16 where gemm_input_type() says so and out is F32; out BF16 or F32 [n, rows].
  // Both may have row strides: multiples of 8 elements are fast, others are correct.
  void linear(Tensor out, Tensor x, const DeviceMatrix& w, cudaStream_t stream);

  // The type of x that loses nothing: F16 for weights kept as bfloat16, because they are exact and the rounding of x is
  // the whole error of the product; else BF16.
  DType gemm_input_type(const DeviceMatrix& w) const;

  // out = gelu_tanh(gate) * up, with gate and up the halves of x w^T. x BF16 [n, cols]; out BF16 [n, rows / 2]. One
  // kernel where fused(w, n) and rows are 16-byte aligned; else through `scratch` BF16 or F32 [n, rows], which may be
  // empty otherwise.
  void linear_geglu(Tensor out, Tensor x, const DeviceMatrix& w, Tensor scratch, cudaStream_t stream);
  bool fused(const DeviceMatrix& w, int64_t n) const;

  // out[i] = table[ids[i]] * scale, rounded once. ids I32 [n] on the device; out BF16 or F32 [n, cols].
  void embed(Tensor out, const DeviceMatrix& table, Tensor ids, float scale, cudaStream_t stream);

  int64_t memory_used() const;  // bytes of workspaces on the device

  const GemvWorkspace& gemv_workspace() const;

  // For measuring: which kernel multiplies few rows, and which one many.
  void force_gemv(GemvVariant variant);
  void force_gemm(GemmVariant variant);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gemma4::cuda
