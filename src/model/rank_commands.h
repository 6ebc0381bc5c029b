// Calls: what rank 0's process asks of the processes of the other ranks: those calls of Model that need all ranks, as
// bytes for a ControlChannel. Model packs them; worker_loop() is the life of a process that is not rank 0.
#pragma once

#include <span>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/batch.h"
#include "model/model.h"

namespace gemma4 {

using CommandBytes = std::vector<std::byte>;

struct RankCommand {
  enum What : uint8_t { kOpen = 1, kClose, kSetPages, kCopyPage, kForward };
  What what = kClose;
  uint64_t model = 0;  // kOpen: model_fingerprint() of rank 0's
  ModelOptions options;
  AttentionKind kind = kSliding;  // kSetPages, kCopyPage
  int seq = 0;
  std::vector<int32_t> pages;
  int32_t from = 0, to = 0;
  Batch batch;  // kForward: without the values of pictures and without sampling, which are rank 0's alone
};

CommandBytes pack_open(uint64_t fingerprint, const ModelOptions& options);
CommandBytes pack_close();
CommandBytes pack_set_pages(AttentionKind kind, int seq, std::span<const int32_t> pages);
CommandBytes pack_copy_page(AttentionKind kind, int32_t from, int32_t to);
CommandBytes pack_forward(const Batch& batch);
RankCommand unpack(std::span<const std::byte> bytes);  // throws Error where they are none of these

// The same in every process that opened the same model for the same backend.
uint64_t model_fingerprint(const Checkpoint& checkpoint, const std::string& backend);

// Takes rank 0's calls until it has no more. `ranks` is this process's, over a ControlChannel. Throws Error.
void worker_loop(const Checkpoint& checkpoint, const Ranks& ranks);

}  // namespace gemma4
