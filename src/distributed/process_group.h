// ProcessGroup: how ranks whose tensors lie in the host's memory exchange them: ranks of one process, or one of them,
// whose others are reached over a ControlChannel. Backend's collective ops call it on the threads of the ranks; each
// call waits until all ranks have come. Sums are taken in the order of the ranks, so that they are the same whoever
// comes first.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "distributed/control_channel.h"

namespace gemma4 {

class ProcessGroup {
 public:
  explicit ProcessGroup(int size) : tensors_(static_cast<size_t>(size)) {}
  explicit ProcessGroup(std::shared_ptr<ControlChannel> channel)
      : tensors_(static_cast<size_t>(channel->world())), channel_(std::move(channel)) {}

  int size() const { return static_cast<int>(tensors_.size()); }

  // As the ops of the same names in backend.h; `x` is rank `rank`'s. Each throws DeviceError once abort() was called.
  void all_reduce(int rank, Tensor x);  // F32
  void broadcast(int rank, Tensor x);
  void gather_columns(int rank, Tensor x, std::span<const int64_t> begins);

  void abort(const std::string& why);  // the first reason counts

 private:
  void barrier();  // returns when all ranks have called it

  std::vector<Tensor> tensors_;              // of the op that is under way, by rank
  std::shared_ptr<ControlChannel> channel_;  // to the other ranks' processes, or null
  std::mutex mutex_;
  std::condition_variable wake_;
  int waiting_ = 0;
  uint64_t generation_ = 0;
  bool left_ = false;
  std::string why_;
};

}  // namespace gemma4
