#include "backend/backend.h"
#include "backend/gpu.h"

namespace gemma4 {

std::string why_no_gpu() { return "it was built without CUDA"; }

std::unique_ptr<Backend> make_cuda(int) {
  throw Error("this gemma4 was built without CUDA; build it where nvcc is installed, or use --backend cpu");
}

std::vector<std::unique_ptr<Backend>> make_cuda_ranks(int) {
  make_cuda(0);
  return {};
}

std::unique_ptr<Backend> make_cuda_rank(ControlChannel&) { return make_cuda(0); }

}  // namespace gemma4
