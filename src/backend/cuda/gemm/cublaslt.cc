#include "backend/cuda/gemm/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <array>
#include <map>
#include <string>

#include "backend/cuda/runtime/error.h"

namespace gemma4::cuda {
namespace {

#define CUBLAS_CHECK(call)                                                                             \
  do {                                                                                                 \
    const cublasStatus_t cublas_status = (call);                                                       \
    if (cublas_status != CUBLAS_STATUS_SUCCESS) {                                                      \
      throw DeviceError("cuBLASLt failed: " + std::string(#call).substr(0, 60) + " returned status " + \
                        std::to_string(static_cast<int>(cublas_status)));                              \
    }                                                                                                  \
  } while (0)

template <typename Function>
void resolve(void* library, Function*& function, const char* name) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  if (!function) throw Error(std::string("libcublasLt has no ") + name + "; install the one of CUDA 13");
}

cublasLtMatrixLayout_t none() { return nullptr; }

}  // namespace

struct CublasLt::State {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;

  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;

  // The algorithm that cuBLASLt chose for one shape.
  struct Plan {
    cublasLtMatrixLayout_t w = none(), x = none(), out = none();
    cublasLtMatmulAlgo_t algorithm = {};
  };
  using Key = std::array<int64_t, 7>;  // rows, cols, n, pitch, x stride, out stride, out is F32
  std::map<Key, Plan> plans;

  const Plan& plan(const Key& key);
};

CublasLt::CublasLt() : state_(std::make_unique<State>()) {
  void* library = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
  if (!library) library = dlopen("libcublasLt.so", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    throw Error("libcublasLt.so.13 was not found; install CUDA 13's cuBLAS or add its folder to LD_LIBRARY_PATH");
  }
  State& s = *state_;
  resolve(library, s.create, "cublasLtCreate");
  resolve(library, s.destroy, "cublasLtDestroy");
  resolve(library, s.matmul, "cublasLtMatmul");
  resolve(library, s.desc_create, "cublasLtMatmulDescCreate");
  resolve(library, s.desc_set, "cublasLtMatmulDescSetAttribute");
  resolve(library, s.layout_create, "cublasLtMatrixLayoutCreate");
  resolve(library, s.preference_create, "cublasLtMatmulPreferenceCreate");
  resolve(library, s.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  resolve(library, s.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  resolve(library, s.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  CUBLAS_CHECK(s.create(&s.handle));
  CUBLAS_CHECK(s.desc_create(&s.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t transpose = CUBLAS_OP_T;
  CUBLAS_CHECK(s.desc_set(s.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)));
}

CublasLt::~CublasLt() {
  if (state_->handle) state_->destroy(state_->handle);  // the plans are few and live as long as the process
}

const CublasLt::State::Plan& CublasLt::State::plan(const Key& key) {
  if (const auto found = plans.find(key); found != plans.end()) return found->second;
  const auto [rows, cols, n, pitch, x_stride, out_stride, out_f32] = key;
  Plan plan;
  // The library is column-major: w is [cols, rows] transposed, x [cols, n], out [rows, n].
  CUBLAS_CHECK(layout_create(&plan.w, CUDA_R_16BF, cols, rows, pitch));
  CUBLAS_CHECK(layout_create(&plan.x, CUDA_R_16BF, cols, n, x_stride));
  CUBLAS_CHECK(layout_create(&plan.out, out_f32 ? CUDA_R_32F : CUDA_R_16BF, rows, n, out_stride));
  cublasLtMatmulPreference_t preference = nullptr;
  CUBLAS_CHECK(preference_create(&preference));
  const uint64_t workspace = kWorkspaceBytes;
  const uint32_t alignment = 16;
  CUBLAS_CHECK(preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace)));
  for (const auto which : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                           CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    CUBLAS_CHECK(preference_set(preference, which, &alignment, sizeof(alignment)));
  }
  cublasLtMatmulHeuristicResult_t result = {};
  int found = 0;
  CUBLAS_CHECK(heuristic(handle, desc, plan.w, plan.x, plan.out, plan.out, preference, 1, &result, &found));
  preference_destroy(preference);
  if (found == 0)
    throw DeviceError("cuBLASLt has no algorithm for a product of " + std::to_string(rows) + " x " +
                      std::to_string(cols) + " x " + std::to_string(n));
  plan.algorithm = result.algo;
  return plans.emplace(key, plan).first->second;
}

void CublasLt::gemm(Tensor out, Tensor x, const void* w, int64_t rows, int64_t pitch, void* workspace,
                    cudaStream_t stream, bool add) {
  const int64_t n = x.rows(), cols = x.row_size();
  const auto stride = [n](const Tensor& t) { return n == 1 ? std::max(t.stride, t.row_size()) : t.stride; };
  const State::Plan& plan =
      state_->plan({rows, cols, n, pitch, stride(x), stride(out), out.dtype == DType::kF32 ? 1 : 0});
  const float one = 1, keep = add ? 1 : 0;
  CUBLAS_CHECK(state_->matmul(state_->handle, state_->desc, &one, w, plan.w, x.data, plan.x, &keep, out.data, plan.out,
                              out.data, plan.out, &plan.algorithm, workspace, kWorkspaceBytes, stream));
}

}  // namespace gemma4::cuda
