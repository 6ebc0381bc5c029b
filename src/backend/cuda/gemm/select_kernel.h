// Which layout a weight gets on the device, and which kernel multiplies by it. All choices of the linear layer are made
// here; linear.cc calls select_kernel() and run_kernel() for each layer. Nothing but run_kernel() needs a GPU. The
// decode megakernel takes a layer before this is asked (megakernel/recorder.cc).
//
// A new kernel of the linear layer touches three files: its own .cu; kernels.h, for the launcher and the name in
// Kernel; select_kernel.cc, for when it is chosen and how it is called. A new weight layout touches four: linear.h (the
// name in Layout), select_kernel.cc (its name, its bytes, which weights get it), layout_codec.cuh (how a lane reads it)
// and pack_weights.cu (how it is written).
#pragma once

#include <span>

#include "backend/cuda/gemm/kernels.h"
#include "backend/cuda/gemm/linear.h"

namespace gemma4::cuda {

// Bytes of a weight tile of 16 x 64; 0 for kBF16.
int weight_tile_bytes(Layout layout);
const char* layout_name(Layout layout);

// The smallest layout that keeps these weights exactly; kBF16 where none does. Reads the zero points of int4.
Layout choose_layout(std::span<const Matrix> matrices);

// Whether gemv_int8() and the decode megakernel can multiply by this layout: 4-bit codes with whole zero points.
bool has_int8_codes(Layout layout);

// Sets pitch and bytes from layout, rows and cols.
void set_size(DeviceMatrix& w);

// How an exported program keeps a matrix, and back: everything but the bytes. Throws Error for a matrix that upload()
// cannot have made, or whose size is not stored.bytes.size().
PrepackedWeight describe(const DeviceMatrix& w, int group);
DeviceMatrix described(const PrepackedWeight& stored);

// The kernel for few rows. kBest: gemv_int8() for up to kGemvInt8RowsBest rows where it fits, else gemv_bf16(). The
// others are for measuring: kInt8 uses gemv_int8() wherever it fits, kBF16 never.
enum class GemvVariant { kBest, kBF16, kInt8 };

// The kernel for many rows of packed weights. kBest: gemm_wgmma() where the device has wgmma, else gemm_mma(). The
// others are for measuring, and should a kernel fail on some device or driver: kMma is gemm_mma() everywhere, kLibrary
// cuBLASLt.
enum class GemmVariant { kBest, kMma, kLibrary };

// What the choice depends on beside the call.
struct Device {
  int shared_max = kGemvInt8Shared;  // bytes of shared memory that a block may have
  bool wgmma = true;                 // the device has it, and gemm_wgmma() passed its self-checks (self_check.h)
  bool mma = true;                   // gemm_mma() passed its self-checks
  GemvVariant gemv = GemvVariant::kBest;
  GemmVariant gemm = GemmVariant::kBest;
};

bool gemv_int8_fits(Layout layout, int64_t n, int shared_max);

// n rows of x of type `input`; `aligned`: rows of x and out start at multiples of 16 bytes.
Kernel select_kernel(const DeviceMatrix& w, int64_t n, bool aligned, const Device& device, DType input = DType::kBF16);
bool fuses_geglu(Kernel kernel);
bool takes_packed_prompts(Kernel kernel);  // gemm_wgmma() or gemm_mma()
void run_kernel(Kernel kernel, const LinearCall& call, LinearWorkspace& workspace, cudaStream_t stream);

// How many rows of packed weights fit `elements` bfloat16 when unpacked: a multiple of 128.
int64_t scratch_rows(int64_t elements, int64_t cols);

}  // namespace gemma4::cuda
