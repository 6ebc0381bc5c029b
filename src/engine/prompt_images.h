// PromptImages: the pictures of one request. How many tokens each takes is read from its header; its pixels are decoded
// only where the engine does not hold the picture's embeddings already.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "engine/hash.h"
#include "engine/image_cache.h"
#include "engine/request.h"
#include "image/patches.h"
#include "model/config.h"
#include "model/model.h"

namespace gemma4 {

// An image of a prompt: its tokens are ids[begin, end).
struct PromptImage {
  int begin = 0, end = 0;
  uint64_t hash = 0;                       // of the file's bytes and the budget
  Model::ImageEmbeddings embeddings;       // empty until encoded
  std::shared_ptr<const Patches> patches;  // the vision tower's input; empty where `embeddings` were known
  int tower_rows = 0;                      // the tower's work, in rows of a prompt that cost as much
  int tower_left = 0;                      // of it, what no step has been given yet
  std::shared_ptr<void> held;              // counts what is prepared (PreparedBytes), until it is encoded
};

// How much memory the prepared pictures of requests take that do not run yet. A request reserves what its pictures will
// take before it decodes the first, and waits, in order of arrival, while others hold too much. One request alone may
// take any amount: the length of its prompt bounds it. Thread-safe.
class PreparedBytes {
 public:
  explicit PreparedBytes(int64_t limit) : limit_(limit) {}

  using Held = std::shared_ptr<void>;  // gives its bytes back when the last copy goes; this object must outlive it

  // Waits (Preparation::pause) until `bytes` fit. Throws CancelledError.
  Held take(int64_t bytes, const Preparation& preparation) EXCLUDES(mutex_);
  int64_t bytes() const EXCLUDES(mutex_);
  int waiting() const EXCLUDES(mutex_);

 private:
  bool try_take(int64_t bytes) EXCLUDES(mutex_);
  void wait(int64_t bytes, const Preparation& preparation) EXCLUDES(mutex_);
  void give_back(int64_t bytes) EXCLUDES(mutex_);
  bool fits(int64_t bytes) const REQUIRES(mutex_) { return bytes_ == 0 || bytes_ + bytes <= limit_; }

  const int64_t limit_;
  mutable Mutex mutex_;
  CondVar changed_;
  int64_t bytes_ GUARDED_BY(mutex_) = 0;
  std::list<int64_t> queue_ GUARDED_BY(mutex_);  // who waits, in order
};

// What the large pictures that are decoded at a time may take, but for one that takes more alone: two of 64 megapixels.
inline constexpr int64_t kDecodingBytes = int64_t{1} << 30;

// Any thread may call it.
class PromptImages {
 public:
  PromptImages(const Config& config, ImageCache& cache, int64_t decoding_bytes = kDecodingBytes);

  // Tokens that the picture `file` takes, from its header. `index` counts from 0 and names it in errors. Throws Error.
  int count_tokens(const std::string& file, int index, int budget) const;

  // Finds or decodes the picture; `salt` sets apart who may find it. While a large one is decoded, other requests
  // get their turns. Throws Error where its data is damaged, CancelledError.
  PromptImage prepare(const std::string& file, int index, int budget, uint64_t salt,
                      const Preparation& preparation) const;

  // Memory that a prepared picture of so many tokens takes.
  int64_t prepared_bytes(int tokens) const;

  const HashKey& key() const { return key_; }
  uint64_t decoded() const { return decoded_; }        // pictures so far
  int waiting() const { return decoding_.waiting(); }  // for other pictures to be decoded

 private:
  uint64_t hash(const std::string& file, int budget, uint64_t salt) const;

  const Config& config_;
  ImageCache& cache_;
  const HashKey key_;
  mutable std::atomic<uint64_t> decoded_ = 0;
  mutable PreparedBytes decoding_;  // bounds what all decoders take: one makes way in the middle of a picture
};

}  // namespace gemma4
