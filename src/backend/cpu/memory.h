// Memory of the cpu backend: Storage (one allocation, counted while it lives), Scratch (what ops reuse, so that a step
// allocates nothing), and Context, which hands scratch and threads to a kernel.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/threads.h"

namespace gemma4::cpu {

// Zeroed memory that starts on a cache line. A large allocation asks for huge pages, and takes memory only where it is
// touched. `used` counts the bytes.
class Storage {
 public:
  Storage(int64_t bytes, std::shared_ptr<std::atomic<int64_t>> used);  // throws Error when memory is short
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  uint8_t* data() const { return data_; }

 private:
  void map();
  uint8_t* data_ = nullptr;
  size_t mapped_ = 0;  // bytes, where it is not from malloc
  int64_t bytes_;
  std::shared_ptr<std::atomic<int64_t>> used_;
};

// Grows to the largest call and keeps that size.
class Scratch {
 public:
  Scratch(int threads, std::shared_ptr<std::atomic<int64_t>> used);
  std::vector<int32_t> plan;      // of attention: the first row of each block of rows
  float* shared(int64_t floats);  // one for all threads; valid until the next call of shared()
  // Memory of each thread, for all threads at once: which threads take part in a loop must not change how much memory
  // is used, only the size of a call may.
  void reserve_local(int64_t floats);
  float* local(int thread) const { return reinterpret_cast<float*>(local_[static_cast<size_t>(thread)]->data()); }

 private:
  float* grow(std::unique_ptr<Storage>& storage, int64_t& size, int64_t floats);
  std::shared_ptr<std::atomic<int64_t>> used_;
  std::unique_ptr<Storage> shared_;
  int64_t shared_size_ = 0;
  std::vector<std::unique_ptr<Storage>> local_;  // [threads]
  std::vector<int64_t> local_size_;              // [threads]
};

struct Context {
  ThreadPool& pool;
  Scratch& scratch;
};

}  // namespace gemma4::cpu
