// Ranks: the backends of this process that compute one model together, and the threads they work on. One backend alone
// is one rank, and nothing of this costs it anything. Where each rank is a process of its own, each holds one backend
// and a ControlChannel to the others. A copy is the same ranks; run() is called by one thread at a time.
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
  Ranks(std::unique_ptr<Backend> backend);  // one, or none where it is null
  Ranks(Backend& backend);                  // one, the caller's own
  // In the order of their ranks; they are tied together already (make_ranks).
  explicit Ranks(std::vector<std::unique_ptr<Backend>> backends);
  // One of several processes. When the last copy of rank 0's goes, the others are told that this is the end.
  Ranks(std::unique_ptr<Backend> backend, std::shared_ptr<ControlChannel> channel);

  int size() const { return static_cast<int>(backends_.size()); }              // in this process
  int world() const { return channel_ ? channel_->world() : size(); }          // in all
  ControlChannel* channel() const { return channel_.get(); }                   // null where this process has all ranks
  bool leads() const { return channel_ != nullptr && channel_->rank() == 0; }  // other processes
  explicit operator bool() const { return !backends_.empty(); }
  Backend& operator[](int rank) const { return *backends_[static_cast<size_t>(rank)]; }
  int64_t memory_used() const;   // bytes allocated, of all ranks
  void replace(Backend& first);  // rank 0 is the caller's from now on, which passes its ops on to the one before

  // Calls work(rank) for every rank at once, each on its own thread and always the same one; rank 0's is the caller's.
  // Returns when all are done. Where one throws, the collective ops of the others end too, and what the first one
  // threw is thrown here.
  // Over a ControlChannel, what work throws ends the other processes, and a failure there is thrown here.
  void run(FunctionRef<void(int rank)> work) const;
  // Ends the other ranks' waits, and other processes with that exit code, for a failure outside run().
  void fail(int code, const std::string& why) const;

 private:
  void run_linked(FunctionRef<void(int rank)> work) const;

  std::vector<std::shared_ptr<Backend>> backends_;
  std::shared_ptr<ControlChannel> channel_;
  std::shared_ptr<ThreadPool> threads_;  // where there are several
};

// `count` backends of that name ("ref", "cpu", "cuda"). cpu: they share out `threads` (0: all cores), at least one
// each. cuda: GPUs 0 .. count-1. Throws Error.
Ranks make_ranks(const std::string& name, int threads, int count);

// This process's rank over `channel`, or make_ranks() where it is null. cpu: `threads` of this process; 0: its part of
// the cores of this host. cuda: the GPU of ProcessInfo::local_rank.
Ranks make_ranks(const std::string& name, int threads, int count, const std::shared_ptr<ControlChannel>& channel);

// Ties backends with tensors in this process's memory together, rank i being element i.
void join_ranks(const std::vector<std::unique_ptr<Backend>>& backends);

}  // namespace gemma4
