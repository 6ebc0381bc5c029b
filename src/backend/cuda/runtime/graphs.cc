#include "backend/cuda/runtime/graphs.h"

#include "backend/cuda/runtime/error.h"

namespace gemma4::cuda {

void Graphs::replay(uint64_t key, const std::function<void()>& issue, cudaStream_t stream) {
  CHECK(!capturing_);
  const auto it = graphs_.find(key);
  if (it == graphs_.end()) {
    if (graphs_.size() >= kGraphsMax) clear();
    issue();
    graphs_[key] = nullptr;
    return;
  }
  if (!it->second) capture(key, issue, stream);
  CUDA_CHECK(cudaGraphLaunch(graphs_[key], stream));
}

void Graphs::capture(uint64_t key, const std::function<void()>& issue, cudaStream_t stream) {
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  capturing_ = true;
  cudaGraph_t graph = nullptr;
  try {
    issue();
  } catch (...) {
    capturing_ = false;
    cudaStreamEndCapture(stream, &graph);
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  capturing_ = false;
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  CUDA_CHECK(error);
  graphs_[key] = executable;
}

void Graphs::clear() {
  for (auto& [key, graph] : graphs_) {
    if (graph) cudaGraphExecDestroy(graph);
  }
  graphs_.clear();
}

}  // namespace gemma4::cuda
