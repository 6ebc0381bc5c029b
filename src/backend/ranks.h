// Ranks: the backends that compute one model together, and the threads they work on. One backend alone is one rank, and
// nothing of this costs it anything. A copy is the same ranks; run() is called by one thread at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/function_ref.h"
#include "base/threads.h"

namespace gemma4 {

class Ranks {
 public:
  Ranks() = default;                        // none
  Ranks(std::unique_ptr<Backend> backend);  // one, or none where it is null
  Ranks(Backend& backend);                  // one, the caller's own
  // In the order of their ranks; they are tied together already (make_ranks).
  explicit Ranks(std::vector<std::unique_ptr<Backend>> backends);

  int size() const { return static_cast<int>(backends_.size()); }
  explicit operator bool() const { return !backends_.empty(); }
  Backend& operator[](int rank) const { return *backends_[static_cast<size_t>(rank)]; }
  int64_t memory_used() const;   // bytes allocated, of all ranks
  void replace(Backend& first);  // rank 0 is the caller's from now on, which passes its verbs on to the one before

  // Calls work(rank) for every rank at once, each on its own thread and always the same one; rank 0's is the caller's.
  // Returns when all are done. Where one throws, the collective verbs of the others end too, and what the first one
  // threw is thrown here.
  void run(FunctionRef<void(int rank)> work) const;

 private:
  std::vector<std::shared_ptr<Backend>> backends_;
  std::shared_ptr<ThreadPool> threads_;  // where there are several
};

// `count` backends of that name ("ref", "cpu", "cuda"). cpu: they share out `threads` (0: all cores), at least one
// each. cuda: GPUs 0 .. count-1. Throws Error.
Ranks make_ranks(const std::string& name, int threads, int count);

// Ties backends with tensors in this process's memory together, rank i being element i.
void join_ranks(const std::vector<std::unique_ptr<Backend>>& backends);

}  // namespace gemma4
