#include "backend/cuda/gemm/linear.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "backend/cuda/gemm/kernels.h"
#include "backend/cuda/gemm/pack_weights.h"
#include "backend/cuda/gemm/select_kernel.h"
#include "backend/cuda/gemm/self_check.h"
#include "backend/cuda/ops/ops.h"
#include "backend/cuda/runtime/device_profile.h"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/error.h"

namespace gemma4::cuda {
namespace {

constexpr int kSelfChecks = 4;  // uploads of each layout that a GEMM kernel is checked on: the four shapes of a layer
constexpr double kSelfCheckLimit = 2e-2;

// GEMMA4_CUDA_PROMPTS=library: prompts through cuBLASLt, should the kernels for them fail on some device or driver.
GemmVariant wanted_gemm() {
  const char* value = std::getenv("GEMMA4_CUDA_PROMPTS");
  return value && std::string(value) == "library" ? GemmVariant::kLibrary : GemmVariant::kBest;
}

// What a warning calls it.
const char* prompt_kernel_name(Kernel kernel) {
  if (kernel == Kernel::kGemmWgmma) return "the wgmma kernel";
  return kernel == Kernel::kGemmMma ? "the mma kernel" : "cuBLASLt";
}

}  // namespace

struct Linear::State {
  Device device;
  LinearWorkspace workspace;
  std::unique_ptr<Uploader> uploader;
  int64_t memory = 0;
  std::array<std::array<int, 16>, 2> self_checks{};  // done, of gemm_wgmma() and gemm_mma(), by layout

  template <typename T>
  void allocate(T*& pointer, int64_t bytes) {
    CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&pointer), bytes));
    memory += bytes;
  }
  Kernel select(const DeviceMatrix& w, const Tensor& out, const Tensor& x) const {
    return select_kernel(w, x.rows(), aligned8(x) && aligned8(out), device, x.dtype);
  }
  void self_check(const DeviceMatrix& w, cudaStream_t stream);
  double self_check_error(Kernel kernel, const DeviceMatrix& w, cudaStream_t stream);
};

Linear::Linear(int device) : state_(std::make_unique<State>()) {
  State& s = *state_;
  const DeviceProfile profile = device_profile(device);
  const int sms = profile.sms;
  s.device.shared_max = s.workspace.gemv.shared_max = profile.shared_max;
  s.device.wgmma = profile.wgmma;
  s.device.gemm = wanted_gemm();
  s.workspace.gemv.bulk_copies = profile.bulk_copies;
  s.workspace.gemv.blocks = s.workspace.wgmma.blocks = sms;
  s.allocate(s.workspace.gemv.partials, gemv_partials_bytes(sms));
  CUDA_CHECK(cudaMemset(s.workspace.gemv.partials, 0xff, gemv_partials_bytes(sms)));
  s.allocate(s.workspace.wgmma.partials, wgmma_partials_bytes(sms));
  s.allocate(s.workspace.wgmma.ready, sms * kMmaBlocksPerSm * 4);
  CUDA_CHECK(cudaMemset(s.workspace.wgmma.ready, 0, sms * kMmaBlocksPerSm * 4));
  s.workspace.mma = {s.workspace.wgmma.partials, s.workspace.wgmma.ready, sms, profile.shared_max};
  s.allocate(s.workspace.cublaslt.memory, CublasLt::kWorkspaceBytes);
  s.allocate(s.workspace.cublaslt.scratch, CublasLtWorkspace::kScratchElements * 2);
  CUDA_CHECK(cudaDeviceSynchronize());  // the workspaces are filled before any stream uses them
}

Linear::~Linear() {
  cudaFree(state_->workspace.gemv.partials);
  cudaFree(state_->workspace.wgmma.partials);
  cudaFree(state_->workspace.wgmma.ready);
  cudaFree(state_->workspace.cublaslt.memory);
  cudaFree(state_->workspace.cublaslt.scratch);
}

const GemvWorkspace& Linear::gemv_workspace() const { return state_->workspace.gemv; }

void Linear::force_gemv(GemvVariant variant) { state_->device.gemv = variant; }

void Linear::force_gemm(GemmVariant variant) { state_->device.gemm = variant; }

int64_t Linear::memory_used() const { return state_->memory; }

DeviceMatrix Linear::upload(std::span<const Matrix> matrices, const Allocate& allocate, cudaStream_t stream) {
  CHECK(!matrices.empty());
  const Matrix& first = matrices[0];
  DeviceMatrix w;
  w.format = first.format, w.cols = first.cols;
  for (const Matrix& m : matrices) {
    CHECK(m.format == first.format && m.cols == first.cols && m.group == first.group);
    w.rows += m.rows;
  }
  w.layout = choose_layout(matrices);
  w.paired = w.layout != Layout::kBF16 && matrices.size() == 2 && first.rows == matrices[1].rows && first.rows % 8 == 0;
  set_size(w);
  w.data = allocate(w.bytes);
  if (!state_->uploader) state_->uploader = std::make_unique<Uploader>();
  state_->uploader->fill(w, matrices, stream);
  state_->self_check(w, stream);
  return w;
}

void Linear::end_upload() { state_->uploader.reset(); }

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
  CUDA_CHECK(cudaStreamSynchronize(stream));  // the caller may unmap the file now
  state_->self_check(like, stream);
  return like;
}

// Tries the kernel that multiplies prompts by w. Where it and gemv_bf16() disagree: warns, and from now on uses the
// next best in its place, which is tried as well.
void Linear::State::self_check(const DeviceMatrix& w, cudaStream_t stream) {
  for (;;) {
    const Kernel kernel = select_kernel(w, 40, true, device);
    if (!takes_packed_prompts(kernel)) return;
    const bool mma = kernel == Kernel::kGemmMma;
    int& done = self_checks[mma][static_cast<size_t>(w.layout)];
    if (done == kSelfChecks) return;
    ++done;
    const double error = self_check_error(kernel, w, stream);
    if (error < kSelfCheckLimit) return;
    (mma ? device.mma : device.wgmma) = false;
    std::fprintf(stderr,
                 "warning: %s differs by %.1e from the decode kernel on %s weights of %lld x %lld; prompts go through "
                 "%s instead, which is slower\n",
                 prompt_kernel_name(kernel), error, layout_name(w.layout), static_cast<long long>(w.rows),
                 static_cast<long long>(w.cols), prompt_kernel_name(select_kernel(w, 40, true, device)));
  }
}

double Linear::State::self_check_error(Kernel kernel, const DeviceMatrix& w, cudaStream_t stream) {
  const char* name = prompt_kernel_name(kernel);
  try {
    return gemm_error(kernel, name, w, workspace, stream);
  } catch (const DeviceError& failure) {
    throw DeviceError(std::string(failure.what()) + "; it was the trial of " + name +
                      ": GEMMA4_CUDA_PROMPTS=library does without it");
  }
}

DType Linear::gemm_input_type(const DeviceMatrix& w) const {
  return w.layout == Layout::kBF16 ? DType::kF16 : DType::kBF16;
}

void Linear::linear(Tensor out, Tensor x, const DeviceMatrix& w, cudaStream_t stream) {
  CHECK(x.dtype == DType::kBF16 || x.dtype == gemm_input_type(w));
  CHECK(x.row_size() == w.cols && out.row_size() == w.rows && out.rows() == x.rows());
  if (x.rows() == 0) return;
  run_kernel(state_->select(w, out, x), {out, x, w}, state_->workspace, stream);
}

bool Linear::fused(const DeviceMatrix& w, int64_t n) const {
  return w.paired && fuses_geglu(select_kernel(w, n, true, state_->device));
}

void Linear::linear_geglu(Tensor out, Tensor x, const DeviceMatrix& w, Tensor scratch, cudaStream_t stream) {
  CHECK(x.dtype == DType::kBF16 && x.row_size() == w.cols && out.row_size() * 2 == w.rows && out.rows() == x.rows());
  if (x.rows() == 0) return;
  const Kernel kernel = state_->select(w, out, x);
  if (w.paired && fuses_geglu(kernel)) {
    return run_kernel(kernel, {.out = out, .x = x, .w = w, .geglu = true}, state_->workspace, stream);
  }
  CHECK(scratch && scratch.row_size() == w.rows && scratch.rows() == x.rows());
  linear(scratch, x, w, stream);
  geglu(stream, out, scratch);
}

void Linear::embed(Tensor out, const DeviceMatrix& table, Tensor ids, float scale, cudaStream_t stream) {
  CHECK(ids.dtype == DType::kI32 && out.row_size() == table.cols);
  embed_rows(out, table, ids, scale, stream);
}

}  // namespace gemma4::cuda
