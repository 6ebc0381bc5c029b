// PrefixCache: which pages of the key-value cache hold which tokens? It allocates pages to sequences and shares pages
// between prompts with the same beginning. There is one pool for each attention kind. Pages have the same length in
// both pools, so `page` tokens take one page of each. A sequence keeps its full-attention pages until it ends, and
// frees its sliding pages once the window has passed them. A freed page keeps its content, under the hash of all tokens
// up to its end, until its memory is needed. A later prompt with the same beginning shares these pages. The written
// part of a page never changes, so sharing needs no copies but of a page that is shared in part.
//
// What is shared tells the asker something about what others have asked. So whole pages are shared, and the unfinished
// last page of a sequence only with a prompt that begins with the whole sequence: a guess is right for a page of tokens
// or not at all. Hashes begin with a salt, so that only sequences of one salt share anything.
//
// The tokens of an image see each other on sliding layers, so their keys depend on the whole image: a shared prefix
// never ends inside an image. Not thread-safe: only the engine's thread uses it.
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

// Identifies the token at one position when prompts are compared: a token id, or, with the top bit set, a hash of an
// image and the index within it.
using TokenHash = uint64_t;

struct PrefixCacheOptions {
  int page = 64;
  int window = 0;                   // sliding window, in tokens
  int pages[kAttentionKinds] = {};  // in each pool
  bool keep = true;                 // false: freed pages lose their content at once
  bool to_a_token = true;           // a shared prefix may end anywhere; false: only where a stored one does
};

struct PageCopy {
  AttentionKind kind;
  int32_t from, to;
};

// The pages of one sequence. Only PrefixCache changes it; EngineCore passes it to the model.
struct PageTable {
  std::vector<int32_t> pages[kAttentionKinds];  // [page index in the sequence]; -1: freed or not allocated
  int first_sliding = 0;                        // sliding pages below this index are freed
  bool changed = false;                         // since it was last passed to the model
  struct Hash {
    uint64_t a = 0, b = 0;
    bool operator==(const Hash&) const = default;
  };
  std::vector<Hash> page_hashes;  // [whole pages inserted]
};

class PrefixCache {
 public:
  explicit PrefixCache(const PrefixCacheOptions& options);

  struct Blocked {  // a shared prefix may not end inside: begin < end of the prefix < end
    int begin, end;
  };
  // For an empty `table`: shares the pages of the longest cached prefix of hashes[0, limit) and returns its length. The
  // caller makes the `copies` before the next forward pass.
  int match_prefix(PageTable& table, std::span<const TokenHash> hashes, int limit, std::span<const Blocked> blocked,
                   std::vector<PageCopy>& copies, uint64_t salt = 0);

  // For an empty `table`: shares the pages of `from`, a table in use whose positions [0, length) are computed and are
  // the same tokens. Returns what it shares: `length`, less where that lies inside an image, or 0 where the window has
  // left pages behind that are needed or no page is left to copy into. Works without kept pages, too.
  int fork(const PageTable& from, PageTable& table, int length, std::span<const Blocked> blocked,
           std::vector<PageCopy>& copies);

  // Allocates pages for all positions below `end`. False if there are too few; then nothing has changed.
  bool allocate(PageTable& table, int end);

  // Frees the sliding pages that are out of the window when position `next` is computed.
  void free_out_of_window(PageTable& table, int next);

  // Makes positions [0, computed) available to other prompts. `last`: the sequence ends here, so its last, partly
  // filled page is inserted too. Sliding pages that overlap [keep_begin, keep_end) are evicted later than others: the
  // next turn of a conversation may begin there.
  void insert(PageTable& table, std::span<const TokenHash> hashes, int computed, bool last, int keep_begin,
              int keep_end, uint64_t salt = 0);

  void free(PageTable& table);  // frees all pages; the table is empty after that

  bool available(AttentionKind kind, int pages) const;  // free or cached
  int total_pages(AttentionKind kind) const { return static_cast<int>(pools_[kind].pages.size()); }
  int used_pages(AttentionKind kind) const { return total_pages(kind) - free_pages(kind) - cached_pages(kind); }
  int free_pages(AttentionKind kind) const { return static_cast<int>(pools_[kind].free.size()); }
  int cached_pages(AttentionKind kind) const { return static_cast<int>(pools_[kind].cached.size()); }
  int window() const { return options_.window; }
  int page() const { return options_.page; }
  int pages_for(int tokens) const { return (tokens + options_.page - 1) / options_.page; }
  void clear();  // evicts every cached page

  // CHECKs that references, free lists and entries agree. `tables`: every table in use.
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
  // The order of eviction: the smallest first.
  struct Rank {
    int keep;
    uint64_t time;
    int depth;  // negative, so that the deepest pages of a sequence come first
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
  static Hash root(uint64_t salt) { return {salt, 0}; }
  std::vector<Hash> path(std::span<const TokenHash> hashes, uint64_t salt, int& length);
  int usable(std::span<const Hash> path, int length, std::span<const Blocked> blocked);
  bool share(PageTable& table, int length, FunctionRef<int32_t(AttentionKind kind, int index)> page_at,
             std::vector<PageCopy>& copies);
  int32_t take_page(AttentionKind kind);  // a page with one reference, or -1
  void add_reference(AttentionKind kind, int32_t page);
  void drop_reference(AttentionKind kind, int32_t page);
  void own(const Hash& hash, Entry& entry, AttentionKind kind, int32_t page);
  void disown(AttentionKind kind, int32_t page);  // removes it from its entry
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
