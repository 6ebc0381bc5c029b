// Measures the two limits of this machine that benchmarks compare with: memory bandwidth and multiply-adds.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/threads.h"

namespace gemma4::cpu {

class Storage;

class PeakMemory {
 public:
  explicit PeakMemory(int64_t bytes);
  ~PeakMemory();
  int64_t bytes() const { return bytes_; }
  void read(ThreadPool& pool) const;  // all of it, once

 private:
  int64_t bytes_;
  std::unique_ptr<Storage> storage_;
};

// Independent chains of fused multiply-adds in registers on every thread, some milliseconds; returns the FLOPs done.
double peak_multiply_adds(ThreadPool& pool);

}  // namespace gemma4::cpu
