// Pages: which pages of the key-value cache hold which tokens, and who may read them. One pool for each kind of layer,
// pages of the same length in both, so that a stretch of `page` tokens is one page in each. A sequence's full-attention
// pages stay for its life; its sliding pages are let go once the window has passed them. Let go, a page is not erased:
// it stays, under the hash of all tokens up to its end, until its room is needed. A later prompt that begins alike
// shares the pages it finds; the stretch in which it begins to differ is copied. So nothing is read twice that is still
// there, and since a written page never changes below its fill, no snapshot is ever taken.
//
// An image's tokens see each other on sliding layers, so their keys depend on the whole image: reuse never ends inside
// one. Not thread-safe: the engine's thread owns it.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/function_ref.h"
#include "engine/hash.h"
#include "model/config.h"

namespace gemma4 {

// What stands at one position, for comparing prompts: a token's id, or a hash of (image, index within it) with the top
// bit set.
using TokenHash = uint64_t;

struct PrefixCacheOptions {
  int page = 64;
  int window = 0;                   // sliding window, in tokens
  int pages[kAttentionKinds] = {};  // in each pool
  bool keep = true;                 // false: pages let go are forgotten at once
};

struct PageCopy {
  AttentionKind kind;
  int32_t from, to;
};

// One sequence's hold on pages. Opaque to all but PrefixCache and whoever tells the model where the pages are.
struct PageTable {
  std::vector<int32_t> pages[kAttentionKinds];  // [page index in the sequence]; -1: let go or not there yet
  int first_sliding = 0;                        // sliding pages below this were let go
  bool changed = false;                         // since the model last heard
  struct Hash {
    uint64_t a = 0, b = 0;
    bool operator==(const Hash&) const = default;
  };
  std::vector<Hash> page_hashes;  // [whole pages published]
};

class PrefixCache {
 public:
  explicit PrefixCache(const PrefixCacheOptions& options);

  struct Blocked {  // positions that reuse may not end between: begin < end of reuse < end
    int begin, end;
  };
  // For an empty `table`: takes hold of the pages of the longest known beginning of hashes[0, limit) and returns its
  // length. `copies` are to be made before the next forward pass.
  int match_prefix(PageTable& table, std::span<const TokenHash> hashes, int limit, std::span<const Blocked> blocked,
                   std::vector<PageCopy>& copies);

  // For an empty `table`: shares the pages of `from`, a table in use whose positions [0, length) are computed and are
  // the same tokens. Returns what it shares: `length`, less where that lies inside an image, or 0 where the window has
  // left pages behind that are needed or no page is left to copy into. Works without kept pages, too.
  int fork(const PageTable& from, PageTable& table, int length, std::span<const Blocked> blocked,
           std::vector<PageCopy>& copies);

  // Makes positions below `end` writable. False where pages are short: then nothing has changed.
  bool allocate(PageTable& table, int end);

  // The next position to be computed is `next`: lets go of what the window has passed.
  void free_out_of_window(PageTable& table, int next);

  // Positions [0, computed) are written and never change. `last`: the sequence ends here, keep its unfinished page too.
  // Sliding pages that overlap [keep_begin, keep_end) are kept longer than others: a next turn may begin there.
  void insert(PageTable& table, std::span<const TokenHash> hashes, int computed, bool last, int keep_begin,
              int keep_end);

  void free(PageTable& table);  // lets go of everything; the table is empty again

  bool available(AttentionKind kind, int pages) const;  // free or cached
  int total_pages(AttentionKind kind) const { return static_cast<int>(pools_[kind].pages.size()); }
  int used_pages(AttentionKind kind) const { return total_pages(kind) - free_pages(kind) - cached_pages(kind); }
  int free_pages(AttentionKind kind) const { return static_cast<int>(pools_[kind].free.size()); }
  int cached_pages(AttentionKind kind) const { return static_cast<int>(pools_[kind].cached.size()); }
  int window() const { return options_.window; }
  int page() const { return options_.page; }
  int pages_for(int tokens) const { return (tokens + options_.page - 1) / options_.page; }
  void clear();  // forgets every cached page

  // CHECKs that references, free lists and entries agree, given every table in use.
  void check(std::span<const PageTable* const> tables) const;

 private:
  using Hash = PageTable::Hash;
  struct HashHasher {
    size_t operator()(const Hash& hash) const { return hash.a; }
  };
  struct Entry {
    Hash parent;
    std::vector<TokenHash> hashes;  // [1 .. page]
    int32_t pages[kAttentionKinds] = {-1, -1};
    int depth = 0;
    bool keep = false;
  };
  // What is taken back first: the smallest.
  struct Rank {
    int keep;
    uint64_t time;
    int depth;  // negative: of one sequence, the deepest first
    int32_t page;
    auto operator<=>(const Rank&) const = default;
  };
  struct Page {
    int refs = 0;
    bool owned = false;  // by the entry `owner`
    Hash owner;
    Rank rank;  // while cached
  };
  struct Pool {
    std::vector<Page> pages;
    std::vector<int32_t> free;
    std::set<Rank> cached;
  };

  Hash hash(const Hash& parent, std::span<const TokenHash> hashes) const;
  Entry* find(const Hash& hash);
  std::vector<Hash> path(std::span<const TokenHash> hashes, int& length);
  int usable(std::span<const Hash> path, int length, std::span<const Blocked> blocked);
  bool share(PageTable& table, int length, FunctionRef<int32_t(AttentionKind kind, int index)> page_at,
             std::vector<PageCopy>& copies);
  int32_t take_page(AttentionKind kind);  // a page with one reference, or -1
  void add_reference(AttentionKind kind, int32_t page);
  void drop_reference(AttentionKind kind, int32_t page);
  void own(const Hash& hash, Entry& entry, AttentionKind kind, int32_t page);
  void disown(AttentionKind kind, int32_t page);  // its entry forgets it
  void erase(const Hash& hash);
  void insert_page(PageTable& table, int index, const Hash& parent, const Hash& hash, std::span<const TokenHash> hashes,
                   bool keep);
  void drop_beginnings(const Hash& parent, std::span<const TokenHash> hashes);

  PrefixCacheOptions options_;
  HashKey key_;
  Pool pools_[kAttentionKinds];
  std::unordered_map<Hash, Entry, HashHasher> entries_;
  std::unordered_map<Hash, std::vector<Hash>, HashHasher> children_;
  uint64_t clock_ = 0;
};

}  // namespace gemma4
