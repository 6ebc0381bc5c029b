// ImageCache: which pictures' embeddings does the engine still hold? The vision tower's output for the last pictures,
// by the hash of the file's bytes and the budget, so that a picture that comes again is neither decoded nor encoded.
//
// Thread-safe, with one rule: device memory is freed on the engine's thread only. Any thread may find() embeddings, and
// holds them as long as it keeps the copy; the cache keeps its own reference until nobody else has one, and insert()
// and trim(), which drop references, belong to the engine's thread.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "model/model.h"

namespace gemma4 {

class ImageCache {
 public:
  // Pictures that are kept while no request uses them.
  static constexpr size_t kCapacity = 16;

  std::optional<Model::ImageEmbeddings> find(uint64_t hash);
  void insert(uint64_t hash, const Model::ImageEmbeddings& embeddings);
  void trim();  // frees what exceeds the capacity and is not in use, the least recently used first

 private:
  void trim_locked() REQUIRES(mutex_);

  Mutex mutex_;
  std::vector<std::pair<uint64_t, Model::ImageEmbeddings>> recent_ GUARDED_BY(mutex_);  // the last used first
};

}  // namespace gemma4
