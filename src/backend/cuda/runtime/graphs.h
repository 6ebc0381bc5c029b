// Graphs: the CUDA graphs behind Backend::replay(). The first call with a key runs eagerly (which sets up kernels and
// libraries), the second is captured, and every later one is a single graph launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>

namespace gemma4::cuda {

class Graphs {
 public:
  Graphs() = default;
  ~Graphs() { clear(); }
  Graphs(const Graphs&) = delete;
  Graphs& operator=(const Graphs&) = delete;

  void replay(uint64_t key, const std::function<void()>& issue, cudaStream_t stream);
  bool capturing() const { return capturing_; }
  void clear();

 private:
  void capture(uint64_t key, const std::function<void()>& issue, cudaStream_t stream);
  static constexpr size_t kGraphsMax = 256;     // beyond it all are dropped
  std::map<uint64_t, cudaGraphExec_t> graphs_;  // null: not captured yet
  bool capturing_ = false;
};

}  // namespace gemma4::cuda
