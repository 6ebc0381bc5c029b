// PromptImages: the pictures of one request. How many tokens each takes is read from its header; its pixels are decoded
// only where the engine does not hold the picture's embeddings already.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "engine/hash.h"
#include "engine/image_cache.h"
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
  std::shared_ptr<void> held;              // counts what is prepared (prepared_bytes.h), until it is encoded
};

// Any thread may call it.
class PromptImages {
 public:
  PromptImages(const Config& config, ImageCache& cache);

  // Tokens that the picture `file` takes, from its header. `index` counts from 0 and names it in errors. Throws Error.
  int count_tokens(const std::string& file, int index, int budget) const;

  // Finds or decodes the picture; `salt` sets apart who may find it. Throws Error where its data is damaged.
  PromptImage prepare(const std::string& file, int index, int budget, uint64_t salt) const;

  // Memory that a prepared picture of so many tokens takes.
  int64_t prepared_bytes(int tokens) const;

  const HashKey& key() const { return key_; }
  uint64_t decoded() const { return decoded_; }  // pictures so far

 private:
  uint64_t hash(const std::string& file, int budget, uint64_t salt) const;

  const Config& config_;
  ImageCache& cache_;
  const HashKey key_;
  mutable std::atomic<uint64_t> decoded_ = 0;
};

}  // namespace gemma4
