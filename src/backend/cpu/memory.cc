#include "backend/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/check.h"

namespace gemma4::cpu {
namespace {

constexpr int64_t kHuge = int64_t{2} << 20, kLine = 64;

}  // namespace

Storage::Storage(int64_t bytes, std::shared_ptr<std::atomic<int64_t>> used) : bytes_(bytes), used_(std::move(used)) {
  if (bytes >= 2 * kHuge) {
    map();
  } else {
    const int64_t size = std::max(kLine, (bytes + kLine - 1) / kLine * kLine);
    data_ = static_cast<uint8_t*>(std::aligned_alloc(kLine, size));
    if (data_ != nullptr) std::memset(data_, 0, size);
  }
  if (data_ == nullptr) throw OutOfMemory("out of memory: " + std::to_string(bytes >> 20) + " MiB were asked for");
  used_->fetch_add(bytes_);
}

// Whole huge pages, which the kernel fills with zeros when they are first touched.
void Storage::map() {
  const size_t size = (static_cast<size_t>(bytes_) + kHuge - 1) / kHuge * kHuge;
  void* whole = mmap(nullptr, size + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (whole == MAP_FAILED) return;
  auto* begin = static_cast<uint8_t*>(whole);
  auto* aligned = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(begin) + kHuge - 1) / kHuge * kHuge);
  const auto before = static_cast<size_t>(aligned - begin);
  if (before > 0) munmap(begin, before);
  munmap(aligned + size, kHuge - before);
  madvise(aligned, size, MADV_HUGEPAGE);
  data_ = aligned;
  mapped_ = size;
}

Storage::~Storage() {
  if (mapped_ > 0) {
    munmap(data_, mapped_);
  } else {
    std::free(data_);
  }
  used_->fetch_sub(bytes_);
}

Scratch::Scratch(int threads, std::shared_ptr<std::atomic<int64_t>> used)
    : used_(std::move(used)), local_(threads), local_size_(threads) {}

float* Scratch::grow(std::unique_ptr<Storage>& storage, int64_t& size, int64_t floats) {
  if (floats > size || !storage) {
    storage.reset();
    storage = std::make_unique<Storage>(floats * sizeof(float), used_);
    size = floats;
  }
  return reinterpret_cast<float*>(storage->data());
}

float* Scratch::shared(int64_t floats) { return grow(shared_, shared_size_, floats); }
void Scratch::reserve_local(int64_t floats) {
  for (size_t i = 0; i < local_.size(); ++i) grow(local_[i], local_size_[i], floats);
}

}  // namespace gemma4::cpu
