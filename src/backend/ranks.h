// Ranks: the backends of this process that compute one model together, and a thread for each. A single backend is one
// rank and pays nothing for this. If each rank is a process, every process has one backend and a ControlChannel to the
// others. Copies share the same ranks. One thread at a time may call run().
//
// A model that is spread by layers has one rank, with several devices in series: backends that know nothing of each
// other and compute one after another, on the caller's thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/function_ref.h"
#include "base/threads.h"
#include "distributed/control_channel.h"

namespace gemma4 {

class Ranks {
 public:
  Ranks() = default;                        // none
  Ranks(std::unique_ptr<Backend> backend);  // one, or none if it is null
  Ranks(Backend& backend);                  // one, which the caller owns
  // In the order of their ranks; make_ranks() has joined them.
  explicit Ranks(std::vector<std::unique_ptr<Backend>> backends);
  static Ranks in_series(std::vector<std::unique_ptr<Backend>> devices);  // one rank
  // One of several processes. When rank 0 destroys its last copy, it ends the other processes in good order.
  Ranks(std::unique_ptr<Backend> backend, std::shared_ptr<ControlChannel> channel);

  int size() const { return static_cast<int>(backends_.size()); }              // in this process
  int world() const { return channel_ ? channel_->world() : size(); }          // in all
  ControlChannel* channel() const { return channel_.get(); }                   // null if this process has all ranks
  bool leads() const { return channel_ != nullptr && channel_->rank() == 0; }  // rank 0 of several processes
  explicit operator bool() const { return !backends_.empty(); }
  Backend& operator[](int rank) const { return *backends_[static_cast<size_t>(rank)]; }
  std::vector<Backend*> devices(int rank) const;  // the rank's own, then those in series with it
  int64_t memory_used() const;                    // bytes allocated, of all ranks and devices
  // Replaces rank 0 by a backend of the caller, which forwards its ops to the old one (forwarding_backend.h).
  void replace(Backend& first);

  // Calls work(rank) for all ranks in parallel, each always on the same thread; rank 0 runs on the thread of the
  // caller. Returns when all are done. If one throws, the collective ops of the others throw too, and run() rethrows
  // the first exception. Over a ControlChannel, an exception of `work` ends the other processes, and run() throws their
  // failures.
  void run(FunctionRef<void(int rank)> work) const;
  // For a failure outside run(): aborts the collective ops of the other ranks, and ends other processes with this exit
  // code.
  void fail(int code, const std::string& why) const;

 private:
  void run_with_channel(FunctionRef<void(int rank)> work) const;

  std::vector<std::shared_ptr<Backend>> backends_;
  std::vector<std::shared_ptr<Backend>> series_;  // the devices after rank 0's own
  std::shared_ptr<ControlChannel> channel_;
  std::shared_ptr<ThreadPool> threads_;  // if there are several backends
};

// `count` backends with this name ("ref", "cpu", "cuda"). cpu: `threads` (0: all cores) are divided among them, at
// least one each. cuda: GPUs 0 .. count-1. Throws Error.
Ranks make_ranks(const std::string& name, int threads, int count);

// The rank of this process over `channel`, or the ranks above if it is null. cpu: `threads` of this process; 0: its
// share of the cores of this host. cuda: the GPU of ProcessInfo::local_rank.
Ranks make_ranks(const std::string& name, int threads, int count, const std::shared_ptr<ControlChannel>& channel);

// Joins backends whose tensors are in the memory of this process. Element i becomes rank i.
void join_ranks(const std::vector<std::unique_ptr<Backend>>& backends);

}  // namespace gemma4
