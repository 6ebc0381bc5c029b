// ThreadPool: a fixed set of workers that split one loop at a time. Used by the quantiser and the cpu backend.
#pragma once

#include <cstdint>
#include <memory>

#include "base/function_ref.h"

namespace gemma4 {

class ThreadPool {
 public:
  explicit ThreadPool(int threads = 0);  // 0: one for each core this process may use
  ~ThreadPool();

  int threads() const;
  static int threads_for(int threads);  // how many a pool of `threads` has

  // Calls body(begin, end) on disjoint ranges that cover [0, count), at most one call per thread at a time; each range
  // but the last is a multiple of `grain` long. The caller works too and returns when all is done. Not re-entrant. If a
  // body throws, the first exception is rethrown here once every worker has stopped.
  void parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t begin, int64_t end)> body);

  // Calls body(thread, task) for each task of [0, count), one at a time to whichever thread is free; `thread` in
  // 0 .. threads()-1 says whose scratch the task may use.
  void parallel_tasks(int64_t count, FunctionRef<void(int thread, int64_t task)> body);

  // Calls body(thread) once on every thread, 0 .. threads()-1.
  void run(FunctionRef<void(int thread)> body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gemma4
