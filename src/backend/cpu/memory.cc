#include "backend/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/check.h"

namespace gemma4::cpu {

Storage::Storage(int64_t bytes, std::shared_ptr<std::atomic<int64_t>> used) : bytes_(bytes), used_(std::move(used)) {
  constexpr int64_t kHuge = int64_t{2} << 20;
  const int64_t align = bytes >= 2 * kHuge ? kHuge : 64;
  const int64_t size = std::max(align, (bytes + align - 1) / align * align);
  data_ = static_cast<uint8_t*>(std::aligned_alloc(align, size));
  if (data_ == nullptr) throw Error("out of memory: " + std::to_string(bytes >> 20) + " MiB were asked for");
  if (align == kHuge) madvise(data_, size, MADV_HUGEPAGE);
  std::memset(data_, 0, size);
  used_->fetch_add(bytes_);
}

Storage::~Storage() {
  std::free(data_);
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
