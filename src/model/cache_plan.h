// cache_plan: how long a context fits in memory, and how many pages each pool of the key-value cache gets. The engine,
// `bench`, `export` of programs and `inspect` all ask here, so that they follow one rule:
//   The longest context is a multiple of 1,024, at most the model's positions, of which one sequence fits in the free
//   memory less a reserve. It is never shorter than 4,096, or the model's positions if these are fewer.
//   All sequences share the pools. In the sliding layers each needs only its window.
#pragma once

#include <cstdint>
#include <span>

#include "model/config.h"
#include "model/model.h"

namespace gemma4 {

constexpr int kLeastDefaultSeqLen = 4096;

struct CacheWish {
  int max_seq_len = 0;    // 0: the longest
  int positions = 0;      // the most that max_seq_len may be; 0: unknown
  int64_t tokens = 0;     // of the full layers' pool; 0: as many as the rule says
  int64_t memory = 0;     // bytes of both pools; 0: what is free, less the reserve
  int windows = 0;        // kept in the sliding layers besides those of running sequences
  int spare_pages = 2;    // of each pool: one to copy from, and a spare one
  bool one_flat = false;  // every sequence owns its pages (options_for()): no more than one sequence is wanted
};

struct CachePlan {
  int max_seq_len = 0;
  int64_t tokens = 0;  // that the full layers' pool holds
  int64_t bytes = 0;   // of both pools
};

// What is left to other uses: 10 %, at least 1 GiB.
int64_t memory_reserve(int64_t free);

// Sliding pages that one sequence needs while a chunk of `rows` is computed: the window before the chunk's first token
// and the chunk itself, at any alignment to page boundaries.
int live_pages(const Config& config, int rows, int page);

// Reads rows_max, seqs_max and page of `model` and sets its pages. Throws Error where wish.memory is too small.
CachePlan plan_caches(const CacheWish& wish, const Config& config, const CacheMemory& memory, ModelOptions& model);

// What pages of these sizes take on `backend`, which is asked for a few of them. `heads`: KV heads of this rank.
// `layers`: the kinds of those whose caches are there.
CacheMemory cache_memory(Backend& backend, const Config& config, const int (&heads)[kAttentionKinds], int page,
                         std::span<const AttentionKind> layers);

// Of several stages (model/placement.h), which all have the same number of pages, as one memory for plan_caches(): what
// fits in that fits in each stage beside a reserve of its own.
CacheMemory memory_of_stages(std::span<const CacheMemory> stages);

}  // namespace gemma4
