// Communicator: the collective ops of one GPU, through NCCL or, for small all-reduces, through peer_all_reduce.h.
// libnccl.so.2 is opened with dlopen at the first call for several GPUs, so neither the build nor a single GPU needs
// it. Ops are enqueued on the rank's stream and return at once; they may be captured in a graph.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/cuda/comm/peer_all_reduce.h"
#include "base/tensor.h"
#include "distributed/control_channel.h"

namespace gemma4::cuda {

class Communicator {
 public:
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int world() const;

  // As the ops in backend.h; contiguous x of F32 or BF16 (gather_columns: any stride).
  void all_reduce(Tensor x, cudaStream_t stream);
  void broadcast(Tensor x, cudaStream_t stream);
  void gather_columns(Tensor x, std::span<const int64_t> begins, cudaStream_t stream);

  RankBuffers rank_buffers() const;  // world 1 if NCCL does all all-reduces

  void check();                        // throws DeviceError once abort() was called
  void abort(const std::string& why);  // from any thread: ends all that the ranks of the group wait for

 private:
  friend std::vector<std::unique_ptr<Communicator>> connect_gpus(int count);
  friend std::unique_ptr<Communicator> connect_process(ControlChannel& channel, int device);
  struct Shared;
  Communicator(std::shared_ptr<Shared> shared, int rank) : shared_(std::move(shared)), rank_(rank) {}
  template <typename Call>
  void enqueue(const Call& call);

  std::shared_ptr<Shared> shared_;
  int rank_;
};

// Ranks 0 .. count-1 on GPUs 0 .. count-1, which must exist. Throws Error if NCCL is missing, DeviceError if it fails.
// NVLink multicast (NVLS) stays off unless NCCL_NVLS_ENABLE is set: if a container or the fabric manager does not allow
// it, NCCL fails to start instead of doing without it (github.com/pytorch/pytorch/pull/177472).
std::vector<std::unique_ptr<Communicator>> connect_gpus(int count);

// This process's GPU `device` as the rank of `channel`; all processes of the channel call it. Throws as connect_gpus().
std::unique_ptr<Communicator> connect_process(ControlChannel& channel, int device);

}  // namespace gemma4::cuda
