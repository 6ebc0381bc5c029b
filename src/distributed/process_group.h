// Group: how ranks whose tensors lie in the host's memory exchange them: ranks of one process, or one of them, whose
// others are reached over a Link. Backend's collective verbs call it on the threads of the ranks; each call waits until
// all ranks have come. Sums are taken in the order of the ranks, so that they are the same whoever comes first.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "distributed/control_channel.h"
#include "base/tensor.h"

namespace gemma4 {

class Group {
 public:
  explicit Group(int size) : tensors_(static_cast<size_t>(size)) {}
  explicit Group(std::shared_ptr<Link> link) : tensors_(static_cast<size_t>(link->world())), link_(std::move(link)) {}

  int size() const { return static_cast<int>(tensors_.size()); }

  // As the verbs of the same names in backend.h; `x` is rank `rank`'s. Each throws DeviceError once leave() was called.
  void all_reduce(int rank, Tensor x);  // F32
  void broadcast(int rank, Tensor x);
  void gather_columns(int rank, Tensor x, std::span<const int64_t> begins);

  void leave(const std::string& why);  // the first reason counts

 private:
  void meet();  // returns when all ranks have called it

  std::vector<Tensor> tensors_;  // of the verb that is under way, by rank
  std::shared_ptr<Link> link_;   // to the other ranks' processes, or null
  std::mutex mutex_;
  std::condition_variable wake_;
  int waiting_ = 0;
  uint64_t meetings_ = 0;
  bool left_ = false;
  std::string why_;
};

}  // namespace gemma4
