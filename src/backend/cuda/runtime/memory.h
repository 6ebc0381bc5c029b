// Device memory, with a count of the bytes, and Staging for the small copies of a step. Host data goes through pinned
// memory, so a write does not wait for the device and the device does not wait for it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>

#include "base/tensor.h"

namespace gemma4::cuda {

class Memory {
 public:
  Memory() = default;
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* allocate(int64_t bytes);  // at least 256-byte aligned, not zeroed; throws Error when memory is short
  void release(void* data);       // null is fine
  int64_t used() const { return used_; }

 private:
  std::map<void*, int64_t> blocks_;
  int64_t used_ = 0;
};

// Pinned memory in two halves: while the device still copies from one, the other is filled.
class Staging {
 public:
  Staging();
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // dst (device) = src (host), in order on `stream`. `src` may be reused on return.
  void write(void* dst, const void* src, int64_t bytes, cudaStream_t stream);
  // dst (host) = src (device), `rows` pieces of `row_bytes`, `pitch` apart. Waits.
  void read(void* dst, const void* src, int64_t row_bytes, int64_t rows, int64_t pitch, cudaStream_t stream);

 private:
  char* reserve(int64_t bytes, cudaStream_t stream);
  static constexpr int64_t kHalf = 1 << 20;
  char* pinned_ = nullptr;
  int64_t at_ = 0;  // in the current half
  int half_ = 0;
  cudaEvent_t done_[2] = {};
};

}  // namespace gemma4::cuda
