// ProcessGroup: the collectives of ranks whose tensors are in host memory. Either all ranks are threads of this
// process, or this process has one rank and reaches the others over a ControlChannel. The collective ops of Backend
// call it on the thread of each rank, and each call waits for all ranks. Sums are made in the order of the ranks, so
// they do not depend on which rank comes first.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/tensor.h"
#include "distributed/control_channel.h"

namespace gemma4 {

class ProcessGroup {
 public:
  explicit ProcessGroup(int size) : tensors_(static_cast<size_t>(size)) {}
  explicit ProcessGroup(std::shared_ptr<ControlChannel> channel)
      : tensors_(static_cast<size_t>(channel->world())), channel_(std::move(channel)) {}

  int size() const { return static_cast<int>(tensors_.size()); }

  // As the ops of the same names in backend.h, with `x` of rank `rank`. After abort() they throw DeviceError.
  void all_reduce(int rank, Tensor x);  // F32
  void broadcast(int rank, Tensor x);
  void gather_columns(int rank, Tensor x, std::span<const int64_t> begins);

  void abort(const std::string& why);  // the first reason counts

 private:
  void barrier() EXCLUDES(mutex_);  // returns when all ranks have called it

  std::vector<Tensor> tensors_;              // of the op in flight, by rank
  std::shared_ptr<ControlChannel> channel_;  // to the processes of the other ranks, or null
  Mutex mutex_;
  CondVar wake_;
  int waiting_ GUARDED_BY(mutex_) = 0;
  uint64_t generation_ GUARDED_BY(mutex_) = 0;
  bool aborted_ GUARDED_BY(mutex_) = false;
  std::string why_ GUARDED_BY(mutex_);
};

}  // namespace gemma4
