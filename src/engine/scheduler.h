// Scheduler: selects the rows that the next forward pass computes. Sequences that generate come first, with one row
// each, and one for each draft that the step verifies (drafts/draft_source.h); prompts share the rest of the chunk in
// order; an image's rows are never split. If pages run out, the last sequence in order is preempted: its pages are
// freed, and it is computed again later, from the prefix that is still cached. So no request fails for lack of memory.
// A sequence whose output is late (Sequence::sits_out) is in no pass, and the others go on. The vision tower's work
// counts as rows of the chunk: a large image is encoded over several steps, one image at a time, and its rows come
// after that. The scheduler only does bookkeeping: no model, no threads, no clock.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "engine/prefix_cache.h"
#include "engine/sequence.h"

namespace gemma4 {

// Keys of sliding layers that a drafter (Model::draft) reads before the window of a sequence's next row. Where steps
// verify drafts, they are kept as long as the window, so the ring has room for as many rows more than a pass has.
constexpr int kDrafterKeys = 2;

struct SchedulerOptions {
  int max_seqs = 1;
  int chunk = 512;             // prompt rows in one pass, unless an image is larger
  int rows_max = 512;          // rows of one pass; at least max_seqs + drafts_max + the largest image
  int drafts_max = 0;          // of those: rows of drafts
  int scored_max = 1;          // rows of one pass of prompts whose tokens are scored: each has its logits
  bool several_salts = false;  // expected; otherwise a client shares the slots once a second salt was seen
};

// Positions [begin, begin + count) of one sequence, and then those of its first `drafts` drafts.
struct ScheduledRows {
  Sequence* sequence;
  int begin, count;
  bool last;       // ends at the sequence's last token: the next token is sampled, and one after each draft
  int drafts = 0;  // until the step is computed; then `count` has those that were accepted
};

// A part of the vision tower's work for one image: as much as `rows` rows of a prompt.
struct ImagePart {
  Sequence* sequence;
  PromptImage* image;
  int rows;
  bool first;  // the image is begun
  bool last;   // all that is left
};

// The next forward pass.
struct Step {
  std::vector<ImagePart> image_parts;  // done before the pass, in order
  std::vector<ScheduledRows> scheduled;
  std::vector<PageCopy> copies;  // made before the pass
  int rows = 0;
};

class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, PrefixCache& pages);

  void add(std::unique_ptr<Sequence> sequence);
  Sequence* find(uint64_t id);
  std::unique_ptr<Sequence> remove(Sequence* sequence);  // frees its pages

  // Empty if there is nothing to do, or all that there is must wait for the output of sequences that sit out. A step
  // may have parts of images and no rows.
  Step next();
  // Call after the pass, when the sequences have their new tokens: inserts pages into the prefix cache, frees old ones.
  void computed(const Step& step);

  int waiting() const { return static_cast<int>(waiting_.size()); }
  std::map<uint64_t, int> waiting_by_salt() const;
  int running() const { return static_cast<int>(running_.size()); }
  uint64_t preemptions() const { return preemptions_; }
  std::vector<Sequence*> all();
  const std::vector<std::unique_ptr<Sequence>>& runs() const { return running_; }
  void check() const;  // CHECKs that no page is lost

 private:
  void admit(Step& step);
  Sequence* next_admitted(const Sequence*& sibling) const;
  int held_by_client(const Sequence& sequence) const;
  void start(Sequence& sequence, const Sequence* sibling, Step& step);
  bool must_wait(const Sequence& sequence, const Sequence*& sibling) const;
  bool wanted_by_siblings(const Sequence& sequence) const;
  bool fits(const Sequence& sequence) const;
  bool one_sits_out() const;
  bool make_room(Sequence& sequence, int end, Step& step);
  void preempt(Sequence& victim, Step& step);
  int prompt_rows(const Sequence& sequence, int budget, int rows_left) const;
  int encode_images(Sequence& sequence, int& budget, Step& step);
  void append_prompts(Step& step);
  void append_prompts(Step& step, int longest, int& budget, int& scored);
  void append(Sequence& sequence, int count, Step& step);
  int drafts_with_pages(const Sequence& sequence, int drafts) const;
  void append_next_token(Sequence& sequence, int& drafts_left, Step& step);

  SchedulerOptions options_;
  PrefixCache& pages_;
  // Both in order of Sequence::before().
  std::vector<std::unique_ptr<Sequence>> waiting_, running_;
  std::vector<int> slots_;  // free
  std::optional<uint64_t> first_salt_;
  bool several_salts_;  // expected, or more than one was seen
  std::vector<PrefixCache::Blocked> blocked_;
  const PromptImage* encoding_ = nullptr;  // of a running sequence: begun, and not finished
  uint64_t preemptions_ = 0;
};

}  // namespace gemma4
