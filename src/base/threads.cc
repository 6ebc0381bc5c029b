#include "base/threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gemma4 {
namespace {

int cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // waits for the pipeline to drain, as x86's pause does; `yield` waits for nothing
#endif
}

// A decode step is several hundred short loops; a worker that spins this long between two of them (about 20 us) saves
// the wake-up, and one that finds nothing to do by then sleeps and costs nothing.
constexpr int kSpins = 4000;

}  // namespace

struct ThreadPool::State {
  int threads = 1;
  std::vector<std::thread> workers;
  std::atomic<uint64_t> generation{0};
  std::atomic<int> running{0};
  std::atomic<bool> stop{false};
  const FunctionRef<void(int)>* body = nullptr;
  Mutex mutex;
  CondVar wake, done;
  std::exception_ptr failure GUARDED_BY(mutex);  // the first of the loop in progress

  void call(int thread) {
    try {
      (*body)(thread);
    } catch (...) {
      keep_failure(std::current_exception());
    }
  }

  void keep_failure(std::exception_ptr caught) {
    const MutexLock lock(mutex);
    if (!failure) failure = std::move(caught);
  }

  void work(int thread) {
    uint64_t seen = 0;
    while (true) {
      for (int i = 0; i < kSpins && generation.load(std::memory_order_acquire) == seen; ++i) pause();
      if (generation.load(std::memory_order_acquire) == seen) {
        const MutexLock lock(mutex);
        while (generation.load(std::memory_order_acquire) == seen) wake.wait(mutex);
      }
      ++seen;
      if (stop.load()) return;
      call(thread);
      if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        const MutexLock lock(mutex);
        done.notify_one();
      }
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  state_->threads = threads_for(threads);
  for (int i = 1; i < state_->threads; ++i) state_->workers.emplace_back([this, i] { state_->work(i); });
}

ThreadPool::~ThreadPool() {
  {
    const MutexLock lock(state_->mutex);
    state_->stop = true;
    state_->generation.fetch_add(1, std::memory_order_release);
  }
  state_->wake.notify_all();
  for (auto& worker : state_->workers) worker.join();
}

int ThreadPool::threads() const { return state_->threads; }
int ThreadPool::threads_for(int threads) { return threads > 0 ? threads : cores(); }

void ThreadPool::run(FunctionRef<void(int)> body) {
  State& s = *state_;
  s.body = &body;
  if (s.threads > 1) {
    s.running.store(s.threads - 1, std::memory_order_relaxed);
    {
      const MutexLock lock(s.mutex);
      s.generation.fetch_add(1, std::memory_order_release);
    }
    s.wake.notify_all();
  }
  s.call(0);
  if (s.threads > 1) {
    for (int i = 0; i < kSpins && s.running.load(std::memory_order_acquire) > 0; ++i) pause();
  }
  const MutexLock lock(s.mutex);
  while (s.running.load(std::memory_order_acquire) > 0) s.done.wait(s.mutex);
  if (s.failure) std::rethrow_exception(std::exchange(s.failure, nullptr));
}

void ThreadPool::parallel_for(int64_t count, int64_t grain, FunctionRef<void(int64_t, int64_t)> body) {
  if (count <= 0) return;
  if (state_->threads == 1 || count <= grain) return body(0, count);
  // Four pieces a thread: even shares when all is quiet, and a thread that was held up leaves its rest to the others.
  const int64_t pieces = std::min<int64_t>((count + grain - 1) / grain, int64_t{4} * state_->threads);
  const int64_t step = ((count + pieces - 1) / pieces + grain - 1) / grain * grain;
  std::atomic<int64_t> next{0};
  run([&](int) {
    for (int64_t begin; (begin = next.fetch_add(step)) < count;) body(begin, std::min(begin + step, count));
  });
}

void ThreadPool::parallel_tasks(int64_t count, FunctionRef<void(int, int64_t)> body) {
  if (state_->threads == 1 || count <= 1) {
    for (int64_t task = 0; task < count; ++task) body(0, task);
    return;
  }
  std::atomic<int64_t> next{0};
  run([&](int thread) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(thread, task);
  });
}

}  // namespace gemma4
