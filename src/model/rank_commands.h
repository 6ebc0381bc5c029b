// Calls: what rank 0's process asks of the processes of the other ranks: those calls of Model that need all ranks, as
// bytes for a Link. Model packs them; follow() is the life of a process that is not rank 0.
#pragma once

#include <span>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/batch.h"
#include "model/model.h"

namespace gemma4 {

using CallBytes = std::vector<std::byte>;

struct RankCall {
  enum What : uint8_t { kOpen = 1, kClose, kSetPages, kCopyPage, kForward };
  What what = kClose;
  uint64_t model = 0;  // kOpen: model_mark() of rank 0's
  ModelOptions options;
  Kind kind = kSliding;  // kSetPages, kCopyPage
  int seq = 0;
  std::vector<int32_t> pages;
  int32_t from = 0, to = 0;
  Batch batch;  // kForward: without the values of pictures and without sampling, which are rank 0's alone
};

CallBytes pack_open(uint64_t mark, const ModelOptions& options);
CallBytes pack_close();
CallBytes pack_set_pages(Kind kind, int seq, std::span<const int32_t> pages);
CallBytes pack_copy_page(Kind kind, int32_t from, int32_t to);
CallBytes pack_forward(const Batch& batch);
RankCall unpack(std::span<const std::byte> bytes);  // throws Error where they are none of these

// The same in every process that opened the same model for the same backend.
uint64_t model_mark(const Checkpoint& checkpoint, const std::string& backend);

// Takes rank 0's calls until it has no more. `ranks` is this process's, over a Link. Throws Error.
void follow(const Checkpoint& checkpoint, const Ranks& ranks);

}  // namespace gemma4
