// Which layout a weight gets on the device, and which kernel multiplies by it. Decisions only: no GPU is needed here.
#pragma once

#include <span>

#include "backend/cuda/gemm/linear.h"

namespace gemma4::cuda {

// Bytes of a chunk of 16 x 64 weights; 0 for kBF16.
int chunk_bytes(Layout layout);
const char* layout_name(Layout layout);

// The layout that keeps these weights exactly and is smallest; kBF16 where none does. Reads the zero points of int4.
Layout choose_layout(std::span<const Matrix> parts);

// Sets pitch and bytes from layout, rows and cols.
void set_size(DeviceMatrix& w);

// How a program keeps a matrix, and back: everything but the bytes. Throws Error where no upload could have made it, or
// where its size is not stored.bytes.size().
PrepackedWeight describe(const DeviceMatrix& w, int group);
DeviceMatrix described(const PrepackedWeight& stored);

enum class Kernel {
  kDecode,   // few rows: one pass over the packed bytes, at the speed of memory
  kMixed,    // packed weights straight to wgmma, more rows
  kLibrary,  // cuBLASLt on bfloat16 weights, unpacked first where they are packed
  kPlain,    // any shape and alignment, slow
};

struct Device {
  int major = 9;  // compute capability
  int sms = 132;
  bool mixed = true;  // the wgmma kernel passed its trials (linear_trial.h)
};

constexpr int64_t kDecodeRows = 16;  // the most rows that the decode kernel takes

// The kernels for few rows. kBest: linear_fixed for up to kFixedBest rows where it knows the layout, else
// linear_decode.
enum class DecodeVariant { kBest, kStream, kFixed };

// n rows of x; `aligned`: rows of x and out start at multiples of 16 bytes.
Kernel choose_kernel(const DeviceMatrix& w, int64_t n, bool aligned, const Device& device);

// How many rows of packed weights fit a scratch of `elements` bfloat16, in whole panels of 128.
int64_t scratch_rows(int64_t elements, int64_t cols);

}  // namespace gemma4::cuda
