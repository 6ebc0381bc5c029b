// Rank commands: the calls of Model that all ranks must make, as messages from rank 0's process to the other processes.
// Model encodes and sends them over a ControlChannel. worker_loop() decodes and runs them; it is all that a process of
// another rank does.
#pragma once

#include <span>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/batch.h"
#include "model/model.h"

namespace gemma4 {

using CommandBytes = std::vector<std::byte>;

struct RankCommand {
  enum Type : uint8_t { kOpen = 1, kClose, kSetPages, kCopyPage, kForward, kCaches };
  Type type = kClose;
  uint64_t model = 0;  // kOpen: model_fingerprint() of rank 0
  ModelOptions options;  // kOpen, kCaches: whose pages count
  AttentionKind kind = kSliding;  // kSetPages, kCopyPage
  int seq = 0;
  std::vector<int32_t> pages;
  int32_t from = 0, to = 0;
  Batch batch;  // kForward: without the values of pictures and without sampling, which only rank 0 has
};

CommandBytes encode_open(uint64_t fingerprint, const ModelOptions& options);
CommandBytes encode_caches(const ModelOptions& options);  // follows encode_open(), when the weights are loaded
CommandBytes encode_close();
CommandBytes encode_set_pages(AttentionKind kind, int seq, std::span<const int32_t> pages);
CommandBytes encode_copy_page(AttentionKind kind, int32_t from, int32_t to);
CommandBytes encode_forward(const Batch& batch);
RankCommand decode_command(std::span<const std::byte> bytes);  // throws Error for other bytes

// A hash that is equal in all processes that opened the same model for the same backend.
uint64_t model_fingerprint(const Checkpoint& checkpoint, const std::string& backend);

// Runs rank 0's commands until it sends kEnd. `ranks`: those of this process, over a ControlChannel. Throws Error.
void worker_loop(const Checkpoint& checkpoint, const Ranks& ranks);

}  // namespace gemma4
