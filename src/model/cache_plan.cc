#include "model/cache_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace gemma4 {
namespace {

constexpr int kStep = 1024;       // of the default context
constexpr int kWindowsShare = 4;  // the windows of other sequences take at most this part of what one leaves
constexpr int64_t kLeastReserve = int64_t{1} << 30;

int64_t pages_of(int64_t tokens, int page) { return (tokens + page - 1) / page; }

class Planner {
 public:
  Planner(const CacheWish& wish, const Config& config, const CacheMemory& memory, ModelOptions& model)
      : wish_(wish),
        model_(model),
        full_bytes_(std::max<int64_t>(1, memory.page_bytes[kFull])),
        sliding_bytes_(std::max<int64_t>(1, memory.page_bytes[kSliding])),
        budget_(wish.memory > 0 ? wish.memory : memory.free - memory_reserve(memory.free)),
        ring_(wish.one_flat ? ring_pages(config, model.rows_max, model.page)
                            : live_pages(config, model.rows_max, model.page)),
        window_(live_pages(config, 1, model.page) + 1),
        wanted_windows_(model.seqs_max - 1 + wish.windows) {}

  CachePlan plan() {
    if (wish_.memory > 0) check_memory();
    const int64_t beside = std::max<int64_t>(0, budget_ - ring_bytes());
    const int64_t left = beside - std::min(beside / kWindowsShare, wanted_windows_ * window_ * sliding_bytes_);
    const int64_t fit = std::max<int64_t>(0, left / full_bytes_ - wish_.spare_pages);  // full pages
    CachePlan plan;
    plan.max_seq_len = length(fit);
    const int64_t one = pages_of(plan.max_seq_len, model_.page);
    const int64_t full = wish_.tokens > 0 ? std::max(one, pages_of(wish_.tokens, model_.page))
                                          : std::max(one, std::min(fit, wanted_pages(plan.max_seq_len)));
    model_.pages_per_seq[kFull] = static_cast<int>(one);
    model_.pages[kFull] = static_cast<int>(full + wish_.spare_pages);
    model_.pages_per_seq[kSliding] = static_cast<int>(std::min(ring_, one));
    const int64_t least = model_.pages_per_seq[kSliding] + wish_.spare_pages;
    const int64_t windows = windows_in(budget_ - model_.pages[kFull] * full_bytes_ - least * sliding_bytes_);
    // More than the other pool's are never used.
    model_.pages[kSliding] =
        static_cast<int>(std::min(least + windows * window_, std::max<int64_t>(model_.pages[kFull], least)));
    plan.tokens = full * model_.page;
    plan.bytes = model_.pages[kFull] * full_bytes_ + model_.pages[kSliding] * sliding_bytes_;
    return plan;
  }

 private:
  int64_t ring_bytes() const { return (ring_ + wish_.spare_pages) * sliding_bytes_; }
  int64_t windows_in(int64_t bytes) const {
    return std::clamp<int64_t>(bytes / (window_ * sliding_bytes_), 0, wanted_windows_);
  }
  int limited(int64_t length) const {
    return static_cast<int>(std::min<int64_t>(length, wish_.positions > 0 ? wish_.positions : 1 << 30));
  }

  // A multiple of kStep, unless that is less than the least default.
  int length(int64_t fit) const {
    if (wish_.max_seq_len > 0) return wish_.max_seq_len;
    const auto rounded = [&](int64_t tokens) {
      const int most = limited(tokens);
      return most < kStep ? most : most / kStep * kStep;
    };
    if (wish_.tokens > 0) return std::max(2, rounded(wish_.tokens));
    const int longest = rounded(fit * model_.page);
    // A pool of a given size holds what it holds.
    return std::max(longest, limited(wish_.memory > 0 ? kStep : kLeastDefaultSeqLen));
  }

  // Of the full layers' pool, where memory allows it.
  int64_t wanted_pages(int max_seq_len) const {
    const int64_t seqs = wish_.one_flat ? 1 : model_.seqs_max;
    if (wish_.max_seq_len > 0 || wish_.memory > 0) return pages_of(seqs * max_seq_len, model_.page);
    return pages_of(std::max<int64_t>(max_seq_len, seqs * std::min(max_seq_len, kLeastDefaultSeqLen)), model_.page);
  }

  void check_memory() const {
    const int least = wish_.max_seq_len > 0 ? wish_.max_seq_len : limited(kStep);
    const int64_t full = pages_of(least, model_.page);
    const int64_t bytes =
        (full + wish_.spare_pages) * full_bytes_ + (std::min(ring_, full) + wish_.spare_pages) * sliding_bytes_;
    if (bytes <= budget_) return;
    throw Error("--kv-memory " + std::to_string(budget_ >> 20) + " MiB is too little: one sequence of " +
                std::to_string(least) + " tokens takes " + std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB");
  }

  const CacheWish& wish_;
  ModelOptions& model_;
  const int64_t full_bytes_, sliding_bytes_;  // of a page
  const int64_t budget_;                      // bytes of both pools; may be negative
  const int64_t ring_, window_;               // pages of one sequence: for a whole chunk, for a token
  const int64_t wanted_windows_;
};

}  // namespace

int64_t memory_reserve(int64_t free) { return std::max(free / 10, kLeastReserve); }

int live_pages(const Config& config, int rows, int page) {
  return static_cast<int>(pages_of(int64_t{config.window} + rows - 2, page)) + 1;
}

CachePlan plan_caches(const CacheWish& wish, const Config& config, const CacheMemory& memory, ModelOptions& model) {
  return Planner(wish, config, memory, model).plan();
}

CacheMemory cache_memory(Backend& backend, const Config& config, const int (&heads)[kAttentionKinds], int page,
                         std::span<const AttentionKind> layers) {
  constexpr int kProbe = 4;  // pages: enough for layouts that round up
  CacheMemory memory;
  memory.free = backend.memory_left().bytes;
  for (const AttentionKind kind : {kSliding, kFull}) {
    const AttentionConfig& c = config.attention[kind];
    const int64_t before = backend.memory_used();
    const KvCache kv =
        backend.kv_alloc({int64_t{kProbe} * page, page, heads[kind], c.head_dim, c.k_is_v ? c.rotated_pairs : 0});
    const int64_t bytes = backend.memory_used() - before;
    backend.kv_release(kv);
    memory.page_bytes[kind] = (bytes + kProbe - 1) / kProbe * std::ranges::count(layers, kind);
  }
  return memory;
}

// A stage with 1/n of the pages' bytes of either kind, at most, holds any pages that take n times its memory in all
// stages together.
CacheMemory memory_of_stages(std::span<const CacheMemory> stages) {
  CacheMemory all;
  for (const CacheMemory& stage : stages) {
    for (const AttentionKind kind : {kSliding, kFull}) all.page_bytes[kind] += stage.page_bytes[kind];
  }
  double least = static_cast<double>(int64_t{1} << 60);
  for (const CacheMemory& stage : stages) {
    double times = std::numeric_limits<double>::infinity();
    for (const AttentionKind kind : {kSliding, kFull}) {
      if (stage.page_bytes[kind] == 0) continue;
      times = std::min(times, static_cast<double>(all.page_bytes[kind]) / static_cast<double>(stage.page_bytes[kind]));
    }
    if (std::isinf(times)) continue;  // it has no caches
    least = std::min(least, static_cast<double>(stage.free - memory_reserve(stage.free)) * times);
  }
  const auto usable = static_cast<int64_t>(least);
  all.free = std::max(usable + kLeastReserve, usable + usable / 9);  // of which memory_reserve() leaves that
  return all;
}

}  // namespace gemma4
