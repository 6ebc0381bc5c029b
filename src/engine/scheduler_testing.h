// Test support: a scheduler over a model that computes nothing but remembers: every slot of every page holds the hash
// of all tokens up to the one written there. A row that could see another sequence's key, a stale one, or one that was
// never written, fails.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "base/file.h"
#include "engine/scheduler.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

// For Sequence's parser, which these tests never use.
inline const Tokenizer& demo_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::from_json(read_file(SOURCE_DIR "/models/demo/tokenizer.json"));
  return tokenizer;
}

struct Shape {
  int page, window, pages_sliding, pages_full, max_seqs, chunk, rows_max;
  int drafts_max = 0;  // of all sequences in one step
  bool several_salts = false;

  // Pages that one sequence has in the sliding layers, at most, by live_pages() of model/cache_plan.h.
  int ring() const { return (window + rows_max + (drafts_max > 0 ? kDrafterKeys : 0) - 2 + page - 1) / page + 1; }
};

class Memory {
 public:
  explicit Memory(const Shape& shape) : shape_(shape) {
    slots_[kSliding].resize(static_cast<size_t>(shape.pages_sliding) * shape.page);
    slots_[kFull].resize(static_cast<size_t>(shape.pages_full) * shape.page);
  }

  void copy(const PageCopy& copy) {
    for (int i = 0; i < shape_.page; ++i) at(copy.kind, copy.to, i) = at(copy.kind, copy.from, i);
  }

  void write(const Sequence& sequence, int pos) {
    for (const AttentionKind kind : {kSliding, kFull}) slot(kind, sequence, pos) = prefix(sequence, pos);
  }

  // All that the token at `pos` may see, given the last position of its image (or pos).
  void check(const Sequence& sequence, int pos, int last) {
    for (int j = std::max(0, pos - shape_.window + 1); j <= last; ++j) {
      ASSERT_EQ(slot(kSliding, sequence, j), prefix(sequence, j)) << "sliding, row " << pos << " key " << j;
    }
    for (int j = 0; j <= pos; ++j) {
      ASSERT_EQ(slot(kFull, sequence, j), prefix(sequence, j)) << "full, row " << pos << " key " << j;
    }
  }

  // What a drafter reads for the last token, which is not computed yet.
  void check_drafter(const Sequence& sequence) {
    const int last = static_cast<int>(sequence.ids.size()) - 2;
    for (int j = std::max(0, last - shape_.window); j <= last; ++j) {
      ASSERT_EQ(slot(kSliding, sequence, j), prefix(sequence, j)) << "sliding, drafter's key " << j;
    }
    ASSERT_EQ(slot(kFull, sequence, last), prefix(sequence, last)) << "full, drafter's key";
  }

 private:
  uint64_t& at(AttentionKind kind, int page, int i) {
    return slots_[kind].at(static_cast<size_t>(page) * shape_.page + i);
  }
  uint64_t& slot(AttentionKind kind, const Sequence& sequence, int pos) {
    const auto& pages = sequence.table.pages[kind];
    const int page = pages.at(pos / shape_.page);
    EXPECT_GE(page, 0);
    return at(kind, page, pos % shape_.page);
  }
  // The key at a position depends on every token before it, and in an image on the whole image: its hash.
  uint64_t prefix(const Sequence& sequence, int pos) {
    Hasher hasher({1, 2});
    for (int i = 0; i <= pos; ++i) hasher.add(sequence.hashes[i]);
    return hasher.finish();
  }

  Shape shape_;
  std::vector<uint64_t> slots_[kAttentionKinds];
};

struct World {
  explicit World(const Shape& shape, bool keep = true)
      : shape(shape),
        memory(shape),
        pages({shape.page, shape.window, {shape.pages_sliding, shape.pages_full}, keep}),
        scheduler({shape.max_seqs, shape.chunk, shape.rows_max, shape.drafts_max, 1, shape.several_salts}, pages) {}

  Sequence* add(std::vector<TokenHash> hashes, int answer, std::vector<std::pair<int, int>> images = {}) {
    auto sequence = std::make_unique<Sequence>(OutputParser(demo_tokenizer()));
    sequence->id = ++last_id;
    sequence->cache_salt = salt;
    sequence->prompt = static_cast<int>(hashes.size());
    sequence->limit = sequence->prompt + answer;
    sequence->ids.assign(hashes.begin(), hashes.end());
    sequence->hashes = std::move(hashes);
    for (const auto& [begin, end] : images) {
      PromptImage image;
      image.begin = begin, image.end = end;
      image.tower_rows = image.tower_left = tower_rows;
      sequence->images.push_back(image);
    }
    Sequence* raw = sequence.get();
    scheduler.add(std::move(sequence));
    return raw;
  }

  // One step; sequences that reach their limit end. Returns the rows computed.
  int step() {
    Step step = scheduler.next();
    EXPECT_LE(step.rows, shape.rows_max);
    for (const ImagePart& part : step.image_parts) encode(part);
    for (const PageCopy& copy : step.copies) memory.copy(copy);
    for (const ScheduledRows& item : step.scheduled)
      with_drafts(item, [&](int pos) { memory.write(*item.sequence, pos); });
    for (const ScheduledRows& item : step.scheduled)
      with_drafts(item, [&](int pos) { memory.check(*item.sequence, pos, last_visible(item, pos)); });
    for (const auto& sequence : scheduler.runs()) {
      const PageTable& table = sequence->table;
      EXPECT_LE(static_cast<int>(table.pages[kSliding].size()) - table.first_sliding, shape.ring());
    }
    int rows = 0, drafts = 0;
    for (ScheduledRows& item : step.scheduled) {
      rows += item.count + item.drafts;
      drafts += item.drafts;
      if (item.last) draw(item);
    }
    EXPECT_EQ(rows, step.rows);
    EXPECT_LE(drafts, shape.drafts_max);
    verified += drafts;
    scheduler.computed(step);
    for (const ScheduledRows& item : step.scheduled) {
      Sequence& sequence = *item.sequence;
      if (!item.last) continue;
      EXPECT_EQ(sequence.computed, static_cast<int>(sequence.ids.size()) - 1);
      if (static_cast<int>(sequence.ids.size()) >= sequence.limit) {
        done[sequence.id] = scheduler.remove(&sequence);
      } else if (shape.drafts_max > 0) {
        draft(sequence);
      }
    }
    scheduler.check();
    return rows;
  }

  // Calls `work` with the positions of all rows, while the sequence has its drafts.
  template <typename Work>
  static void with_drafts(const ScheduledRows& item, const Work& work) {
    auto& hashes = item.sequence->hashes;
    const size_t size = hashes.size();
    hashes.insert(hashes.end(), item.sequence->drafts.begin(), item.sequence->drafts.begin() + item.drafts);
    for (int pos = item.begin; pos < item.begin + item.count + item.drafts; ++pos) work(pos);
    hashes.resize(size);
  }

  // The model accepts some of the drafts, and draws a token after them.
  void draw(ScheduledRows& item) {
    Sequence& sequence = *item.sequence;
    const int accepted = static_cast<int>(random() % (item.drafts + 1));
    for (int i = 0; i <= accepted; ++i) {
      const auto token = i < accepted ? sequence.drafts[i] : static_cast<int32_t>(random() % 5);
      sequence.ids.push_back(token);
      sequence.hashes.push_back(token);
    }
    item.count += accepted;
  }

  void draft(Sequence& sequence) {
    if (sequence.table.first_sliding * shape.page <=
        std::max(0, static_cast<int>(sequence.ids.size()) - 2 - shape.window)) {
      memory.check_drafter(sequence);
      ++windows_checked;
    }
    sequence.drafts.clear();
    const int left = sequence.limit - static_cast<int>(sequence.ids.size()) - 1;
    for (int i = static_cast<int>(random() % 6); i > 0 && static_cast<int>(sequence.drafts.size()) < left; --i) {
      sequence.drafts.push_back(static_cast<int32_t>(5 + random() % 5));
    }
  }

  // The vision tower: one image at a time.
  void encode(const ImagePart& part) {
    if (part.first) encoded[part.image] = 0;
    EXPECT_TRUE(part.first || part.image == in_tower) << "another image was begun";
    in_tower = part.image;
    const int done = encoded[part.image] += part.rows;
    EXPECT_EQ(done == part.image->tower_rows, part.last);
    parts += part.rows;
  }

  int last_visible(const ScheduledRows& item, int pos) {
    for (const PromptImage& image : item.sequence->images) {
      if (image.begin > pos || pos >= image.end) continue;
      EXPECT_LE(item.begin, image.begin) << "an image was split";
      EXPECT_GE(item.begin + item.count, image.end) << "an image was split";
      EXPECT_TRUE(image.tower_rows == 0 || encoded[&image] == image.tower_rows) << "an image is not encoded";
      return image.end - 1;
    }
    return pos;
  }

  void drain() {
    while (scheduler.running() + scheduler.waiting() > 0) {
      const int before = parts;
      ASSERT_GT(step() + parts - before, 0);
    }
  }

  Shape shape;
  Memory memory;
  PrefixCache pages;
  Scheduler scheduler;
  std::mt19937 random{7};
  uint64_t last_id = 0, salt = 0;
  int tower_rows = 0;  // of images that are added
  std::map<const PromptImage*, int> encoded;
  const PromptImage* in_tower = nullptr;
  int parts = 0;                          // rows of the tower's work so far
  int verified = 0, windows_checked = 0;  // drafts; what a drafter reads
  std::map<uint64_t, std::unique_ptr<Sequence>> done;
};

}  // namespace gemma4
