#include "engine/prefix_cache.h"

#include <algorithm>

#include "base/check.h"
#include "base/random.h"

namespace gemma4 {

HashKey HashKey::random() { return {system_random(), system_random()}; }

PrefixCache::PrefixCache(const PrefixCacheOptions& options) : options_(options), key_(HashKey::random()) {
  CHECK(options.page > 0 && options.window > 0);
  for (int kind = 0; kind < kAttentionKinds; ++kind) {
    Pool& pool = pools_[kind];
    pool.pages.resize(options.pages[kind]);
    for (int i = options.pages[kind]; i-- > 0;) pool.free.push_back(i);
  }
}

PrefixCache::Hash PrefixCache::hash(const Hash& parent, std::span<const TokenHash> hashes) const {
  Hasher a(key_), b({key_.b, key_.a});
  a.add(parent.a), b.add(parent.b);
  for (const TokenHash hash : hashes) a.add(hash), b.add(hash);
  return {a.finish(), b.finish()};
}

PrefixCache::Entry* PrefixCache::find(const Hash& hash) {
  const auto it = entries_.find(hash);
  return it == entries_.end() ? nullptr : &it->second;
}

// References.

int32_t PrefixCache::take_page(AttentionKind kind) {
  Pool& pool = pools_[kind];
  if (pool.free.empty()) {
    if (pool.cached.empty()) return -1;
    const int32_t page = pool.cached.begin()->page;
    disown(kind, page);
  }
  const int32_t page = pool.free.back();
  pool.free.pop_back();
  CHECK(pool.pages[page].refs == 0 && !pool.pages[page].owned);
  pool.pages[page].refs = 1;
  return page;
}

void PrefixCache::add_reference(AttentionKind kind, int32_t page) {
  Page& p = pools_[kind].pages[page];
  if (p.refs++ == 0) CHECK(p.owned && pools_[kind].cached.erase(p.rank) == 1);
}

void PrefixCache::drop_reference(AttentionKind kind, int32_t page) {
  Pool& pool = pools_[kind];
  Page& p = pool.pages[page];
  CHECK(p.refs > 0);
  if (--p.refs > 0) return;
  if (!p.owned) return pool.free.push_back(page);
  const Entry* entry = find(p.owner);
  CHECK(entry);
  p.rank = {entry->keep || kind == kFull, clock_, -entry->depth, page};
  pool.cached.insert(p.rank);
}

void PrefixCache::own(const Hash& hash, Entry& entry, AttentionKind kind, int32_t page) {
  Page& p = pools_[kind].pages[page];
  CHECK(!p.owned && p.refs > 0 && entry.pages[kind] < 0);
  p.owned = true;
  p.owner = hash;
  entry.pages[kind] = page;
}

void PrefixCache::disown(AttentionKind kind, int32_t page) {
  Pool& pool = pools_[kind];
  Page& p = pool.pages[page];
  CHECK(p.owned);
  Entry* entry = find(p.owner);
  CHECK(entry && entry->pages[kind] == page);
  entry->pages[kind] = -1;
  p.owned = false;
  if (p.refs == 0) {
    CHECK(pool.cached.erase(p.rank) == 1);
    pool.free.push_back(page);
  }
  if (entry->pages[kSliding] < 0 && entry->pages[kFull] < 0) erase(p.owner);
}

void PrefixCache::erase(const Hash& hash) {
  const auto it = entries_.find(hash);
  const auto siblings = children_.find(it->second.parent);
  std::erase(siblings->second, hash);
  if (siblings->second.empty()) children_.erase(siblings);
  entries_.erase(it);
}

// Reuse.

// The hashes of cached pages that match hashes[0, length): whole pages, then possibly an unfinished one, or with
// `to_a_token` one whose beginning matches.
std::vector<PrefixCache::Hash> PrefixCache::path(std::span<const TokenHash> hashes, uint64_t salt, int& length) {
  std::vector<Hash> path;
  const size_t page = options_.page;
  Hash parent = root(salt);
  length = 0;
  while (length + page <= hashes.size()) {
    const auto part = hashes.subspan(length, page);
    const Hash next = hash(parent, part);
    const Entry* entry = find(next);
    if (!entry || entry->pages[kFull] < 0 || !std::ranges::equal(entry->hashes, part)) break;
    path.push_back(next);
    parent = next;
    length += options_.page;
  }
  const auto rest = hashes.subspan(length);
  const auto children = children_.find(parent);
  if (children == children_.end()) return path;
  size_t best = 0;
  Hash best_hash;
  for (const Hash& child : children->second) {
    const Entry& entry = *find(child);
    if (entry.pages[kFull] < 0) continue;
    const size_t most = std::min(rest.size(), entry.hashes.size());
    const size_t same = std::mismatch(rest.begin(), rest.begin() + most, entry.hashes.begin()).first - rest.begin();
    if (!options_.to_a_token && same < entry.hashes.size()) continue;
    if (same > best) best = same, best_hash = child;
  }
  if (best > 0) path.push_back(best_hash), length += static_cast<int>(best);
  return path;
}

// The longest prefix of at most `length` that ends outside of images and whose sliding window is still cached.
int PrefixCache::usable(std::span<const Hash> path, int length, std::span<const Blocked> blocked) {
  for (bool changed = true; changed && length > 0;) {
    changed = false;
    for (const Blocked& block : blocked) {
      if (block.begin < length && length < block.end) length = block.begin, changed = true;
    }
    const int first = std::max(0, length - options_.window + 1);
    for (int i = first / options_.page; i * options_.page < length; ++i) {
      if (find(path[i])->pages[kSliding] >= 0) continue;
      length = i * options_.page;
      changed = true;
      break;
    }
  }
  return length;
}

int PrefixCache::match_prefix(PageTable& table, std::span<const TokenHash> hashes, int limit,
                              std::span<const Blocked> blocked, std::vector<PageCopy>& copies, uint64_t salt) {
  CHECK(table.pages[kFull].empty() && table.page_hashes.empty());
  if (!options_.keep) return 0;
  int length;
  const std::vector<Hash> found = path(hashes, salt, length);
  length = usable(found, std::min(length, limit), blocked);
  if (length == 0) return 0;
  const auto page_at = [&](AttentionKind kind, int i) { return find(found[i])->pages[kind]; };
  if (!share(table, length, page_at, copies)) return 0;
  table.page_hashes.assign(found.begin(), found.begin() + length / options_.page);
  return length;
}

int PrefixCache::fork(const PageTable& from, PageTable& table, int length, std::span<const Blocked> blocked,
                      std::vector<PageCopy>& copies) {
  CHECK(table.pages[kFull].empty() && table.page_hashes.empty());
  for (bool changed = true; changed;) {
    changed = false;
    for (const Blocked& block : blocked) {
      if (block.begin < length && length < block.end) length = block.begin, changed = true;
    }
  }
  if (length <= 0 || std::max(0, length - options_.window + 1) / options_.page < from.first_sliding) return 0;
  const auto page_at = [&](AttentionKind kind, int i) { return from.pages[kind][i]; };
  if (!share(table, length, page_at, copies)) return 0;
  const auto known = std::min<size_t>(from.page_hashes.size(), length / options_.page);
  table.page_hashes.assign(from.page_hashes.begin(), from.page_hashes.begin() + static_cast<ptrdiff_t>(known));
  return length;
}

// Gives the empty `table` a reference to every whole page below `length` that its window needs, and a copy of the page
// in which `length` lies. False where there is no page for the copy: then nothing has changed.
bool PrefixCache::share(PageTable& table, int length, FunctionRef<int32_t(AttentionKind kind, int index)> page_at,
                        std::vector<PageCopy>& copies) {
  const int whole = length / options_.page;
  const bool partial = length % options_.page > 0;
  const int first = std::max(0, length - options_.window + 1) / options_.page;
  int32_t source[kAttentionKinds] = {-1, -1};
  for (const AttentionKind kind : {kSliding, kFull}) {
    table.pages[kind].assign(whole, -1);
    for (int i = kind == kSliding ? first : 0; i < whole; ++i) {
      table.pages[kind][i] = page_at(kind, i);
      add_reference(kind, table.pages[kind][i]);
    }
    if (partial) add_reference(kind, source[kind] = page_at(kind, whole));
  }
  table.first_sliding = std::min(first, whole);
  table.changed = true;
  if (!partial) return true;
  const bool grown = allocate(table, length);
  for (const AttentionKind kind : {kSliding, kFull}) {
    if (grown) copies.push_back({kind, source[kind], table.pages[kind][whole]});
    drop_reference(kind, source[kind]);
  }
  if (!grown) free(table);
  return grown;
}

bool PrefixCache::allocate(PageTable& table, int end) {
  const size_t want = (end + options_.page - 1) / options_.page;
  const size_t have = table.pages[kFull].size();
  for (size_t i = have; i < want; ++i) {
    int32_t page[kAttentionKinds];
    for (const AttentionKind kind : {kSliding, kFull}) page[kind] = take_page(kind);
    const bool enough = page[kSliding] >= 0 && page[kFull] >= 0;
    for (const AttentionKind kind : {kSliding, kFull}) {
      if (page[kind] < 0) continue;
      if (enough) table.pages[kind].push_back(page[kind]);
      if (!enough) drop_reference(kind, page[kind]);
    }
    if (enough) continue;
    for (const AttentionKind kind : {kSliding, kFull}) {
      for (size_t j = have; j < i; ++j) drop_reference(kind, table.pages[kind][j]);
      table.pages[kind].resize(have);
    }
    return false;
  }
  table.changed = table.changed || want > have;
  return true;
}

void PrefixCache::free_out_of_window(PageTable& table, int next) {
  const int first = std::max(0, next - options_.window + 1) / options_.page;
  ++clock_;
  for (; table.first_sliding < std::min<int>(first, table.pages[kSliding].size()); ++table.first_sliding) {
    int32_t& page = table.pages[kSliding][table.first_sliding];
    drop_reference(kSliding, page);
    page = -1;
  }
}

void PrefixCache::insert(PageTable& table, std::span<const TokenHash> hashes, int computed, bool last, int keep_begin,
                         int keep_end, uint64_t salt) {
  if (!options_.keep) return;
  const int page = options_.page;
  for (int i = static_cast<int>(table.page_hashes.size()); i * page < computed; ++i) {
    const int count = std::min(page, computed - i * page);
    if (count < page && !last) break;
    const auto part = hashes.subspan(static_cast<size_t>(i) * page, count);
    const Hash parent = i > 0 ? table.page_hashes[i - 1] : root(salt);
    const Hash next = hash(parent, part);
    insert_page(table, i, parent, next, part, last || (i * page < keep_end && i * page + count > keep_begin));
    if (count == page) table.page_hashes.push_back(next);
  }
  for (size_t i = table.first_sliding; last && i < table.page_hashes.size(); ++i) {
    if (Entry* entry = find(table.page_hashes[i])) entry->keep = true;
  }
}

void PrefixCache::insert_page(PageTable& table, int index, const Hash& parent, const Hash& hash,
                              std::span<const TokenHash> hashes, bool keep) {
  if (options_.to_a_token) drop_beginnings(parent, hashes);
  Entry* entry = find(hash);
  if (!entry) {
    entry = &entries_[hash];
    entry->parent = parent;
    entry->hashes.assign(hashes.begin(), hashes.end());
    entry->depth = index;
    children_[parent].push_back(hash);
  }
  entry->keep = entry->keep || keep;
  for (const AttentionKind kind : {kSliding, kFull}) {
    const int32_t page = table.pages[kind][index];
    if (page >= 0 && entry->pages[kind] < 0 && !pools_[kind].pages[page].owned) own(hash, *entry, kind, page);
  }
  if (entry->pages[kSliding] < 0 && entry->pages[kFull] < 0) erase(hash);
}

// Removes the partly filled pages that are a beginning of `hashes`: the page of `hashes` serves the same prompts.
void PrefixCache::drop_beginnings(const Hash& parent, std::span<const TokenHash> hashes) {
  const auto children = children_.find(parent);
  if (children == children_.end()) return;
  std::vector<Hash> shorter;
  for (const Hash& child : children->second) {
    const Entry& entry = *find(child);
    if (entry.hashes.size() < hashes.size() && std::equal(entry.hashes.begin(), entry.hashes.end(), hashes.begin())) {
      shorter.push_back(child);
    }
  }
  for (const Hash& child : shorter) {
    for (const AttentionKind kind : {kSliding, kFull}) {
      const Entry* entry = find(child);
      if (entry && entry->pages[kind] >= 0) disown(kind, entry->pages[kind]);
    }
  }
}

void PrefixCache::free(PageTable& table) {
  ++clock_;
  for (const AttentionKind kind : {kSliding, kFull}) {
    for (const int32_t page : table.pages[kind]) {
      if (page >= 0) drop_reference(kind, page);
    }
  }
  table = {};
}

bool PrefixCache::available(AttentionKind kind, int pages) const {
  return free_pages(kind) + cached_pages(kind) >= pages;
}

void PrefixCache::clear() {
  for (const AttentionKind kind : {kSliding, kFull}) {
    while (!pools_[kind].cached.empty()) disown(kind, pools_[kind].cached.begin()->page);
  }
}

void PrefixCache::check(std::span<const PageTable* const> tables) const {
  for (const AttentionKind kind : {kSliding, kFull}) {
    const Pool& pool = pools_[kind];
    std::vector<int> refs(pool.pages.size());
    for (const PageTable* table : tables) {
      for (const int32_t page : table->pages[kind]) {
        if (page >= 0) ++refs[page];
      }
    }
    size_t idle = 0;
    for (size_t i = 0; i < refs.size(); ++i) {
      const Page& page = pool.pages[i];
      CHECK(page.refs == refs[i]);
      CHECK(page.owned == (page.owned && entries_.at(page.owner).pages[kind] == static_cast<int32_t>(i)));
      CHECK((page.refs == 0 && page.owned) == pool.cached.contains(page.rank));
      idle += page.refs == 0;
    }
    CHECK(idle == pool.free.size() + pool.cached.size());
  }
  for (const auto& [hash, entry] : entries_) {
    CHECK(entry.pages[kSliding] >= 0 || entry.pages[kFull] >= 0);
    CHECK(std::ranges::count(children_.at(entry.parent), hash) == 1);
  }
}

}  // namespace gemma4
