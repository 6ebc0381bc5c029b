#include "engine/image_cache.h"

#include <algorithm>

namespace gemma4 {

std::optional<Model::ImageEmbeddings> ImageCache::find(uint64_t hash) {
  const MutexLock lock(mutex_);
  const auto known = std::ranges::find(recent_, hash, &std::pair<uint64_t, Model::ImageEmbeddings>::first);
  if (known == recent_.end()) return std::nullopt;
  std::rotate(recent_.begin(), known, known + 1);
  return recent_.front().second;
}

void ImageCache::insert(uint64_t hash, const Model::ImageEmbeddings& embeddings) {
  const MutexLock lock(mutex_);
  recent_.insert(recent_.begin(), {hash, embeddings});
  trim_locked();
}

void ImageCache::trim() {
  const MutexLock lock(mutex_);
  trim_locked();
}

// New references are made by find(), under the mutex, or by copying one that exists. So embeddings whose only reference
// is the cache's stay that way for as long as the mutex is held.
void ImageCache::trim_locked() {
  for (size_t i = recent_.size(); i-- > 0 && recent_.size() > kCapacity;) {
    if (recent_[i].second.hold.use_count() == 1) recent_.erase(recent_.begin() + static_cast<ptrdiff_t>(i));
  }
}

}  // namespace gemma4
