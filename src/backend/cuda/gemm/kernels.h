// The kernels of the linear layer, out = x w^T: one launcher for each, and the device memory that they work in.
// select_kernel.h says which of them runs; run_kernel() there and self_check.cc are their only callers. No launcher
// waits, and none but gemm_cublaslt*() on their first call allocates, so every call can be captured in a graph.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "backend/cuda/gemm/cublaslt.h"
#include "backend/cuda/gemm/linear.h"

namespace gemma4::cuda {

enum class Kernel {
  kGemvInt8,         // one or two rows: int8 limbs of x times 4-bit codes
  kGemvBF16,         // few rows: one pass over the packed bytes, at the speed of memory
  kGemmWgmma,        // more rows: packed weights straight to wgmma
  kGemmMma,          // the same without wgmma: mma.sync
  kCublasLt,         // weights kept as bfloat16
  kCublasLtUnpack,   // packed weights, unpacked to bfloat16 first
  kCublasLtFloat16,  // weights kept as bfloat16, x float16
  kGemvNaive,        // any shape and alignment, slow
};

// One linear layer. x BF16 [n, cols] with row stride, or F16 for kernels that say so; out BF16 or F32 [n, w.rows] with
// row stride. `geglu`: w.paired, and out = gelu_tanh(gate) * up, BF16 [n, w.rows / 2].
struct LinearCall {
  Tensor out, x;
  const DeviceMatrix& w;
  bool geglu = false;
};

constexpr int64_t kGemvRowsMax = 16;       // rows of x that gemv_bf16() takes
constexpr int64_t kGemvInt8RowsMax = 8;    // rows of x that gemv_int8() takes
constexpr int64_t kGemvInt8RowsBest = 4;   // up to which gemv_int8() is the faster one: all GEMVs of a step of the
                                           // 31B take 5.2 against 6.7 ms at 1 row (H200), 6.5 against 7.0 at 4 and
                                           // 8.4 against 7.1 at 8
constexpr int kGemvInt8Shared = 99 << 10;  // bytes of shared memory that gemv_int8() needs: four stages

// Split-K partials of row tiles that several blocks share. Values are kNotWritten (gemv_pipeline.cuh) until a block has
// written them.
struct GemvWorkspace {
  float* partials = nullptr;  // [blocks, 128, kGemvRowsMax], all bytes 0xff between launches
  int blocks = 0;             // one for each SM
  int shared_max = 0;         // bytes of shared memory that a block may have: 227 KB on Hopper, 99 KB on desktop GPUs
  bool bulk_copies = true;    // DeviceProfile
};
constexpr int64_t gemv_partials_bytes(int blocks) { return static_cast<int64_t>(blocks) * 128 * kGemvRowsMax * 4; }

// Partials of output tiles that several blocks share, and a flag for each block that says its partial is written.
struct WgmmaWorkspace {
  float* partials = nullptr;  // [blocks, 256 x 128]
  uint32_t* ready = nullptr;  // [blocks], zero between launches
  int blocks = 0;             // one for each SM
};
constexpr int64_t wgmma_partials_bytes(int blocks) { return static_cast<int64_t>(blocks) * 256 * 128 * 4; }

// The same for gemm_mma(), in the same memory: no two GEMMs run at a time.
constexpr int kMmaBlocksPerSm = 2;
constexpr int kMmaSharedMax = 99 << 10;  // bytes of shared memory that a block takes at most: what desktop GPUs have
struct MmaWorkspace {
  float* partials = nullptr;  // [sms * kMmaBlocksPerSm, 128 x 128]
  uint32_t* ready = nullptr;  // [sms * kMmaBlocksPerSm], zero between launches
  int sms = 0;
  int shared_max = kMmaSharedMax;  // bytes of shared memory that a block may have; an SM has 1 KB more
};
static_assert(kMmaBlocksPerSm * 128 * 128 * 4 <= wgmma_partials_bytes(1));

struct CublasLtWorkspace {
  std::unique_ptr<CublasLt> library;                     // loaded by the first call
  void* memory = nullptr;                                // [CublasLt::kWorkspaceBytes]
  __nv_bfloat16* scratch = nullptr;                      // [kScratchElements]
  static constexpr int64_t kScratchElements = 64 << 20;  // bfloat16 weights that are unpacked at a time
};

struct LinearWorkspace {
  GemvWorkspace gemv;
  WgmmaWorkspace wgmma;
  MmaWorkspace mma;
  CublasLtWorkspace cublaslt;
};

// n <= kGemvRowsMax; packed w with cols a multiple of 64; rows of x and out 16-byte aligned.
void gemv_bf16(const LinearCall& call, const GemvWorkspace& workspace, cudaStream_t stream);

// The same for what gemv_int8_fits() (select_kernel.h) accepts.
void gemv_int8(const LinearCall& call, const GemvWorkspace& workspace, cudaStream_t stream);

// Packed w with cols a multiple of 64 and the rows of each stacked matrix a multiple of 8; rows of x and out 16-byte
// aligned; out BF16, or F32 without geglu. Compute capability 9.0 alone (wgmma).
void gemm_wgmma(const LinearCall& call, const WgmmaWorkspace& workspace, cudaStream_t stream);

// The same for compute capability 8.0 and later.
void gemm_mma(const LinearCall& call, const MmaWorkspace& workspace, cudaStream_t stream);

// Through cuBLASLt. Rows, columns and strides multiples of 8 elements; no geglu. x BF16 and w kBF16; packed w; x F16
// and w kBF16, out F32.
void gemm_cublaslt(const LinearCall& call, CublasLtWorkspace& workspace, cudaStream_t stream);
void gemm_cublaslt_unpack(const LinearCall& call, CublasLtWorkspace& workspace, cudaStream_t stream);
void gemm_cublaslt_float16(const LinearCall& call, CublasLtWorkspace& workspace, cudaStream_t stream);

// Any shape, stride and layout; x BF16, or F16 where w is kBF16. No geglu.
void gemv_naive(const LinearCall& call, cudaStream_t stream);

// out[i] = table[ids[i]] * scale, rounded once; 0 for ids outside of the table. ids I32 [n]; out BF16 or F32 [n, cols].
void embed_rows(Tensor out, const DeviceMatrix& table, Tensor ids, float scale, cudaStream_t stream);

}  // namespace gemma4::cuda
