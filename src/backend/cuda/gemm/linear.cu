#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "backend/cuda/gemm/cublaslt.h"
#include "backend/cuda/gemm/gemm_wgmma.h"
#include "backend/cuda/gemm/gemv_bf16.h"
#include "backend/cuda/gemm/gemv_int8.h"
#include "backend/cuda/gemm/layout_codec.cuh"
#include "backend/cuda/gemm/linear.h"
#include "backend/cuda/gemm/pack_weights.h"
#include "backend/cuda/gemm/self_check.h"
#include "backend/cuda/ops/ops.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.cuh"

namespace gemma4::cuda {
namespace {

constexpr int kTrials = 4;  // uploads of each layout on which the wgmma kernel is tried: the four shapes of a layer
constexpr double kTrialLimit = 2e-2;
constexpr int64_t kScratchElements = 64 << 20;  // bf16 weights unpacked at a time for the library

// bfloat16 weights as a codec of single values, so that the slow kernels are written once.
struct Plain {
  const __nv_bfloat16* data;
  int64_t pitch;
};

template <typename Codec>
struct Reader {  // of packed weights
  Packed w;
  __device__ float operator()(int row, int col) const { return packed_value<Codec>(w, row, col); }
};
template <>
struct Reader<Plain> {
  Plain w;
  __device__ float operator()(int row, int col) const { return __bfloat162float(w.data[row * w.pitch + col]); }
};

// Calls body(reader) for the layout of w.
template <typename Body>
void with_reader(const DeviceMatrix& w, Body&& body) {
  if (w.layout == Layout::kBF16) {
    return body(Reader<Plain>{{static_cast<const __nv_bfloat16*>(w.data), w.pitch}});
  }
  with_codec(w.layout, [&](auto codec) { body(Reader<decltype(codec)>{packed(w)}); });
}

__device__ __forceinline__ float as_float(float x) { return x; }
__device__ __forceinline__ float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float as_float(__half x) { return __half2float(x); }

template <typename T>
__device__ void store(T* to, float value) {
  if constexpr (sizeof(T) == 2) {
    *to = __float2bfloat16_rn(value);
  } else {
    *to = value;
  }
}

// One warp for each output, any shape and alignment.
template <typename Weights, typename X, typename Out>
__global__ void plain_kernel(Weights w, const X* x, int64_t x_stride, Out* out, int64_t out_stride, int rows,
                             int cols) {
  grid_release();
  grid_wait();
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  float sum = 0;
  for (int col = lane; col < cols; col += 32) {
    sum = fmaf(w(row, col), as_float(x[blockIdx.y * x_stride + col]), sum);
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  if (lane == 0) store(out + blockIdx.y * out_stride + row, sum);
}

// Rows of packed weights to bfloat16 [count, cols]: two neighbouring columns a thread.
template <typename Weights>
__global__ void unpack_kernel(Weights w, int first, int cols, __nv_bfloat162* out) {
  grid_release();
  grid_wait();
  const int pair = blockIdx.x * blockDim.x + threadIdx.x;
  if (pair * 2 >= cols) return;
  const int row = first + blockIdx.y;
  out[static_cast<int64_t>(blockIdx.y) * (cols / 2) + pair] =
      __floats2bfloat162_rn(w(row, pair * 2), w(row, pair * 2 + 1));
}

template <typename Weights, typename Out>
__global__ void embed_kernel(Weights table, const int32_t* ids, float scale, Out* out, int64_t stride, int rows,
                             int cols) {
  grid_release();
  grid_wait();
  const int col = blockIdx.x * blockDim.x + threadIdx.x;
  if (col >= cols) return;
  const int id = ids[blockIdx.y];
  const float value = id >= 0 && id < rows ? table(id, col) * scale : 0.0f;
  store(out + blockIdx.y * stride + col, value);
}

// A float16 has 11 bits of mantissa: it is the sum of two bfloat16 numbers, exactly.
__global__ void split_kernel(const __half* x, int64_t stride, __nv_bfloat16* high, __nv_bfloat16* low, int cols) {
  grid_release();
  grid_wait();
  const int col = blockIdx.x * blockDim.x + threadIdx.x;
  if (col >= cols) return;
  const float value = __half2float(x[blockIdx.y * stride + col]);
  const __nv_bfloat16 near = __float2bfloat16_rn(value);
  high[static_cast<int64_t>(blockIdx.y) * cols + col] = near;
  low[static_cast<int64_t>(blockIdx.y) * cols + col] = __float2bfloat16_rn(value - __bfloat162float(near));
}

// out = a + b, both [rows, cols].
__global__ void sum_kernel(float* out, int64_t stride, const float* a, const float* b, int cols) {
  grid_release();
  grid_wait();
  const int col = blockIdx.x * blockDim.x + threadIdx.x;
  const int64_t at = static_cast<int64_t>(blockIdx.y) * cols + col;
  if (col < cols) out[blockIdx.y * stride + col] = a[at] + b[at];
}

bool aligned16(const Tensor& t) {
  const int64_t item = static_cast<int64_t>(dtype_size(t.dtype));
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && (t.rows() <= 1 || t.stride * item % 16 == 0);
}

// GEMMA4_CUDA_PROMPTS=library: prompts through cuBLASLt, should the wgmma kernel fail on some device or driver.
bool wants_mixed() {
  const char* value = std::getenv("GEMMA4_CUDA_PROMPTS");
  return !value || std::string(value) != "library";
}

dim3 grid_over(int64_t cols, int threads, int64_t rows) {
  return dim3(static_cast<unsigned>((cols + threads - 1) / threads), static_cast<unsigned>(rows));
}

template <typename Body>
void with_out(const Tensor& out, Body&& body) {
  if (out.dtype == DType::kF32) return body(static_cast<float*>(out.data));
  CHECK(out.dtype == DType::kBF16);
  body(static_cast<__nv_bfloat16*>(out.data));
}

}  // namespace

struct Linear::State {
  Device device;
  std::unique_ptr<Uploader> uploader;
  std::unique_ptr<Library> library;
  DecodeWorkspace decode;
  MixedWorkspace mixed;
  void* library_workspace = nullptr;
  __nv_bfloat16* scratch = nullptr;
  int64_t memory = 0;
  std::array<int, 16> trials{};  // done, by layout
  DecodeVariant variant = DecodeVariant::kBest;

  void try_mixed(const DeviceMatrix& w, cudaStream_t stream);
  void* take(int64_t bytes) {
    void* pointer = nullptr;
    CUDA_CHECK(cudaMalloc(&pointer, bytes));
    memory += bytes;
    return pointer;
  }

  void plain(Tensor out, Tensor x, const DeviceMatrix& w, cudaStream_t stream);
  void in_two_terms(Tensor out, Tensor x, const DeviceMatrix& w, cudaStream_t stream);
  void unpacked(Tensor out, Tensor x, const DeviceMatrix& w, cudaStream_t stream);
  void run(Tensor out, Tensor x, const DeviceMatrix& w, Kernel kernel, cudaStream_t stream);
  void decode_rows(Tensor out, Tensor x, const DeviceMatrix& w, bool geglu, cudaStream_t stream);
};

Linear::Linear(int device) : state_(std::make_unique<State>()) {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  state_->device = {properties.major, properties.multiProcessorCount};
  state_->device.mixed = wants_mixed();
  state_->decode.blocks = properties.multiProcessorCount;
  state_->decode.shared_most = static_cast<int>(properties.sharedMemPerBlockOptin);
  const int64_t bytes = decode_workspace_bytes(state_->decode.blocks);
  state_->decode.partial = static_cast<float*>(state_->take(bytes));
  CUDA_CHECK(cudaMemset(state_->decode.partial, 0xff, bytes));
  state_->mixed.blocks = properties.multiProcessorCount;
  state_->mixed.partial = static_cast<float*>(state_->take(mixed_partial_bytes(state_->mixed.blocks)));
  state_->mixed.ready = static_cast<uint32_t*>(state_->take(state_->mixed.blocks * 4));
  CUDA_CHECK(cudaMemset(state_->mixed.ready, 0, state_->mixed.blocks * 4));
  state_->library_workspace = state_->take(Library::kWorkspace);
  state_->scratch = static_cast<__nv_bfloat16*>(state_->take(kScratchElements * 2));
  CUDA_CHECK(cudaDeviceSynchronize());  // the workspaces are as they must be before any stream uses them
}

Linear::~Linear() {
  cudaFree(state_->decode.partial);
  cudaFree(state_->mixed.partial);
  cudaFree(state_->mixed.ready);
  cudaFree(state_->library_workspace);
  cudaFree(state_->scratch);
}

const DecodeWorkspace& Linear::decode_workspace() const { return state_->decode; }

void Linear::try_variant(DecodeVariant variant) { state_->variant = variant; }

int64_t Linear::memory_used() const { return state_->memory; }

DeviceMatrix Linear::upload(std::span<const Matrix> parts, const Allocate& allocate, cudaStream_t stream) {
  CHECK(!parts.empty());
  const Matrix& first = parts[0];
  DeviceMatrix w;
  w.format = first.format, w.cols = first.cols;
  for (const Matrix& part : parts) {
    CHECK(part.format == first.format && part.cols == first.cols && part.group == first.group);
    w.rows += part.rows;
  }
  w.layout = choose_layout(parts);
  w.paired = w.layout != Layout::kBF16 && parts.size() == 2 && first.rows == parts[1].rows && first.rows % 8 == 0;
  set_size(w);
  w.data = allocate(w.bytes);
  if (!state_->uploader) state_->uploader = std::make_unique<Uploader>();
  state_->uploader->fill(w, parts, stream);
  state_->try_mixed(w, stream);
  return w;
}

std::vector<std::byte> Linear::read_back(const DeviceMatrix& w, cudaStream_t stream) {
  std::vector<std::byte> bytes(static_cast<size_t>(w.bytes));
  CUDA_CHECK(cudaMemcpyAsync(bytes.data(), w.data, bytes.size(), cudaMemcpyDeviceToHost, stream));
  CUDA_CHECK(cudaStreamSynchronize(stream));
  return bytes;
}

DeviceMatrix Linear::load_prepacked(DeviceMatrix like, std::span<const std::byte> bytes, const Allocate& allocate,
                                    cudaStream_t stream) {
  CHECK(static_cast<int64_t>(bytes.size()) == like.bytes);
  like.data = allocate(like.bytes);
  CUDA_CHECK(cudaMemcpyAsync(like.data, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream));
  CUDA_CHECK(cudaStreamSynchronize(stream));  // the mapped file may go
  state_->try_mixed(like, stream);
  return like;
}

// Falls back to the library for good, and says so, where the wgmma kernel gives something else than the decode kernel.
void Linear::State::try_mixed(const DeviceMatrix& w, cudaStream_t stream) {
  int& done = trials[static_cast<size_t>(w.layout)];
  if (w.layout == Layout::kBF16 || done == kTrials || choose_kernel(w, 40, true, device) != Kernel::kMixed) return;
  ++done;
  double error = 0;
  try {
    error = mixed_error(w, decode, mixed, stream);
  } catch (const DeviceError& failure) {
    throw DeviceError(std::string(failure.what()) +
                      "; it was the trial of the wgmma kernel: GEMMA4_CUDA_PROMPTS=library does without it");
  }
  if (error < kTrialLimit) return;
  device.mixed = false;
  std::fprintf(stderr,
               "warning: the wgmma kernel differs by %.1e from the decode kernel on %s weights of %lld x %lld; prompts "
               "go through cuBLASLt instead, about a third slower\n",
               error, layout_name(w.layout), static_cast<long long>(w.rows), static_cast<long long>(w.cols));
}

void Linear::end_upload() { state_->uploader.reset(); }

void Linear::State::plain(Tensor out, Tensor x, const DeviceMatrix& w, cudaStream_t stream) {
  const auto run = [&](auto reader, const auto* from) {
    with_out(out, [&](auto* to) {
      using X = std::decay_t<decltype(*from)>;
      launch(stream, grid_over(w.rows, 8, x.rows()), dim3(256), 0,
             plain_kernel<decltype(reader), X, std::decay_t<decltype(*to)>>, reader, from, x.stride, to, out.stride,
             static_cast<int>(w.rows), static_cast<int>(w.cols));
    });
  };
  if (x.dtype == DType::kF16) {
    return run(Reader<Plain>{{static_cast<const __nv_bfloat16*>(w.data), w.pitch}}, static_cast<const __half*>(x.data));
  }
  with_reader(w, [&](auto reader) { run(reader, static_cast<const __nv_bfloat16*>(x.data)); });
}

// float16 x by bfloat16 weights, which the library does not multiply: high w^T + low w^T, summed in float32. Few rows
// stand one below the other, so that w is read once.
void Linear::State::in_two_terms(Tensor out, Tensor x, const DeviceMatrix& w, cudaStream_t stream) {
  CHECK(out.dtype == DType::kF32);
  const int64_t most = kScratchElements / (2 * w.cols);
  for (int64_t begin = 0; begin < x.rows(); begin += most) {
    const int64_t n = std::min(most, x.rows() - begin);
    const Tensor from = x.slice(begin, n), to = out.slice(begin, n);
    const Tensor terms(scratch, DType::kBF16, {2 * n, w.cols});
    const Tensor high = terms.slice(0, n), low = terms.slice(n, n);
    launch(stream, grid_over(w.cols, 256, n), dim3(256), 0, split_kernel, from.row<const __half>(0), from.stride,
           high.row<__nv_bfloat16>(0), low.row<__nv_bfloat16>(0), static_cast<int>(w.cols));
    if (n > kDecodeRows || 2 * n * (w.cols + 2 * w.rows) > kScratchElements) {
      library->multiply(to, high, w.data, w.rows, w.pitch, library_workspace, stream);
      library->multiply(to, low, w.data, w.rows, w.pitch, library_workspace, stream, true);
      continue;
    }
    const Tensor sums(scratch + terms.size(), DType::kF32, {2 * n, w.rows});
    library->multiply(sums, terms, w.data, w.rows, w.pitch, library_workspace, stream);
    launch(stream, grid_over(w.rows, 256, n), dim3(256), 0, sum_kernel, to.row<float>(0), to.stride,
           sums.row<const float>(0), sums.row<const float>(n), static_cast<int>(w.rows));
  }
}

// Unpacks some rows of w at a time and multiplies by them.
void Linear::State::unpacked(Tensor out, Tensor x, const DeviceMatrix& w, cudaStream_t stream) {
  const int64_t step = scratch_rows(kScratchElements, w.cols);
  for (int64_t row = 0; row < w.rows; row += step) {
    const int64_t count = std::min(step, w.rows - row);
    with_codec(w.layout, [&](auto codec) {
      using Weights = Reader<decltype(codec)>;
      launch(stream, grid_over(w.cols / 2, 128, count), dim3(128), 0, unpack_kernel<Weights>, Weights{packed(w)},
             static_cast<int>(row), static_cast<int>(w.cols), reinterpret_cast<__nv_bfloat162*>(scratch));
    });
    library->multiply(out.columns(row, count), x, scratch, count, w.cols, library_workspace, stream);
  }
}

void Linear::State::decode_rows(Tensor out, Tensor x, const DeviceMatrix& w, bool geglu, cudaStream_t stream) {
  const int64_t most = variant == DecodeVariant::kStream  ? 0
                       : variant == DecodeVariant::kFixed ? kFixedRows
                                                          : kFixedBest;
  if (x.rows() > most || !linear_fixed_fits(w, x.rows(), decode)) {
    return linear_decode(out, x, w, geglu, decode, stream);
  }
  linear_fixed(out, x, w, geglu, decode, stream);
}

void Linear::State::run(Tensor out, Tensor x, const DeviceMatrix& w, Kernel kernel, cudaStream_t stream) {
  if (kernel == Kernel::kDecode) return decode_rows(out, x, w, false, stream);
  if (kernel == Kernel::kPlain) return plain(out, x, w, stream);
  if (kernel == Kernel::kMixed) return linear_mixed(out, x, w, false, mixed, stream);
  if (!library) library = std::make_unique<Library>();
  if (x.dtype == DType::kF16) return in_two_terms(out, x, w, stream);
  if (w.layout != Layout::kBF16) return unpacked(out, x, w, stream);
  library->multiply(out, x, w.data, w.rows, w.pitch, library_workspace, stream);
}

DType Linear::gemm_input_type(const DeviceMatrix& w) const {
  return w.layout == Layout::kBF16 ? DType::kF16 : DType::kBF16;
}

void Linear::linear(Tensor out, Tensor x, const DeviceMatrix& w, cudaStream_t stream) {
  CHECK(x.dtype == DType::kBF16 || x.dtype == gemm_input_type(w));
  CHECK(x.row_size() == w.cols && out.row_size() == w.rows && out.rows() == x.rows());
  if (x.rows() == 0) return;
  state_->run(out, x, w, choose_kernel(w, x.rows(), aligned16(x) && aligned16(out), state_->device), stream);
}

bool Linear::fused(const DeviceMatrix& w, int64_t n) const {
  const Kernel kernel = choose_kernel(w, n, true, state_->device);
  return w.paired && (kernel == Kernel::kDecode || kernel == Kernel::kMixed);
}

void Linear::linear_geglu(Tensor out, Tensor x, const DeviceMatrix& w, Tensor scratch, cudaStream_t stream) {
  CHECK(x.dtype == DType::kBF16 && x.row_size() == w.cols && out.row_size() * 2 == w.rows && out.rows() == x.rows());
  if (x.rows() == 0) return;
  if (aligned16(x) && aligned16(out) && fused(w, x.rows())) {
    if (x.rows() > kDecodeRows) return linear_mixed(out, x, w, true, state_->mixed, stream);
    return state_->decode_rows(out, x, w, true, stream);
  }
  CHECK(scratch && scratch.row_size() == w.rows && scratch.rows() == x.rows());
  linear(scratch, x, w, stream);
  geglu(stream, out, scratch);
}

void Linear::embed(Tensor out, const DeviceMatrix& table, Tensor ids, float scale, cudaStream_t stream) {
  CHECK(ids.dtype == DType::kI32 && out.row_size() == table.cols);
  with_reader(table, [&](auto reader) {
    with_out(out, [&](auto* to) {
      launch(stream, grid_over(table.cols, 128, out.rows()), dim3(128), 0,
             embed_kernel<decltype(reader), std::decay_t<decltype(*to)>>, reader, static_cast<const int32_t*>(ids.data),
             scale, to, out.stride, static_cast<int>(table.rows), static_cast<int>(table.cols));
    });
  });
}

}  // namespace gemma4::cuda
