// PromptMaker: turns a Request into token ids and prepared images. It decodes pictures, fits them to the budget,
// renders the conversation and tokenizes: everything about a prompt that needs no model. Any thread may call it.
#pragma once

#include <memory>
#include <vector>

#include "engine/hash.h"
#include "engine/prefix_cache.h"
#include "engine/request.h"
#include "image/patches.h"
#include "model/config.h"
#include "model/model.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

// An image of a prompt: its soft tokens are ids[begin, end).
struct PromptImage {
  int begin = 0, end = 0;
  std::shared_ptr<const Patches> patches;
  uint64_t hash = 0;            // of the file's bytes and the budget
  Model::ImageEmbeddings soft;  // empty until encoded
};

struct PreparedPrompt {
  std::vector<int32_t> ids;
  std::vector<TokenKey> keys;  // [ids]
  std::vector<PromptImage> images;
};

struct PromptLimits {
  int image_budget = 0;      // default, soft tokens
  int image_budget_max = 0;  // the largest that one pass can hold
  int images_max = 0;
  int max_seq_len = 0;
  bool vision = true;
};

class PromptMaker {
 public:
  PromptMaker(const Tokenizer& tokenizer, const Config& config, const PromptLimits& limits);
  PreparedPrompt make(const Request& request) const;  // throws Error

 private:
  std::vector<Piece> pieces(const Request& request) const;
  PromptImage prepare(const std::string& file, int index, int budget) const;
  void check_ids(const std::vector<int32_t>& ids) const;

  Tokenizer tokenizer_;
  const Config config_;
  const PromptLimits limits_;
  const HashKey key_;
};

}  // namespace gemma4
