#include "backend/cuda/runtime/memory.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/runtime/error.h"

namespace gemma4::cuda {

Memory::~Memory() {
  for (const auto& [data, bytes] : blocks_) cudaFree(data);
}

void* Memory::allocate(int64_t bytes) {
  CHECK(bytes >= 0);
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes > 0 ? bytes : 1));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // clears the error; the device still works
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    throw OutOfMemory("the GPU has " + std::to_string(free >> 20) + " MiB of its " + std::to_string(total >> 20) +
                " MiB left and " + std::to_string((bytes + (1 << 20) - 1) >> 20) +
                " MiB are wanted; use a smaller context, fewer sequences or a smaller quantisation");
  }
  CUDA_CHECK(error);
  blocks_[data] = bytes;
  used_ += bytes;
  return data;
}

void Memory::release(void* data) {
  if (!data) return;
  const auto it = blocks_.find(data);
  CHECK(it != blocks_.end());
  used_ -= it->second;
  blocks_.erase(it);
  cudaFree(data);  // may return an earlier kernel's failure, which the next checked call reports
}

Staging::Staging() {
  CUDA_CHECK(cudaMallocHost(reinterpret_cast<void**>(&pinned_), 2 * kHalf));
  for (auto& event : done_) CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
}

Staging::~Staging() {
  for (auto& event : done_) cudaEventDestroy(event);
  cudaFreeHost(pinned_);
}

char* Staging::reserve(int64_t bytes, cudaStream_t stream) {
  if (at_ + bytes > kHalf) {
    CUDA_CHECK(cudaEventRecord(done_[half_], stream));
    half_ ^= 1;
    at_ = 0;
    CUDA_CHECK(cudaEventSynchronize(done_[half_]));
  }
  char* begin = pinned_ + half_ * kHalf + at_;
  at_ += (bytes + 255) / 256 * 256;
  return begin;
}

void Staging::write(void* dst, const void* src, int64_t bytes, cudaStream_t stream) {
  for (int64_t at = 0; at < bytes; at += kHalf) {  // the device copies one piece while the next is filled
    const int64_t piece = std::min(kHalf, bytes - at);
    char* pinned = reserve(piece, stream);
    std::memcpy(pinned, static_cast<const char*>(src) + at, static_cast<size_t>(piece));
    CUDA_CHECK(cudaMemcpyAsync(static_cast<char*>(dst) + at, pinned, static_cast<size_t>(piece), cudaMemcpyHostToDevice,
                               stream));
  }
}

void Staging::read(void* dst, const void* src, int64_t row_bytes, int64_t rows, int64_t pitch, cudaStream_t stream) {
  if (rows == 1 && row_bytes <= kHalf) {
    char* pinned = reserve(row_bytes, stream);
    CUDA_CHECK(cudaMemcpyAsync(pinned, src, static_cast<size_t>(row_bytes), cudaMemcpyDeviceToHost, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    std::memcpy(dst, pinned, static_cast<size_t>(row_bytes));
    return;
  }
  CUDA_CHECK(cudaMemcpy2DAsync(dst, static_cast<size_t>(row_bytes), src, static_cast<size_t>(pitch),
                               static_cast<size_t>(row_bytes), static_cast<size_t>(rows), cudaMemcpyDeviceToHost,
                               stream));
  CUDA_CHECK(cudaStreamSynchronize(stream));
}

}  // namespace gemma4::cuda
