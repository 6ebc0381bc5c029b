#include "engine/scheduler.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace gemma4 {
namespace {

void insert_sorted(std::vector<std::unique_ptr<Sequence>>& list, std::unique_ptr<Sequence> sequence) {
  const auto at = std::ranges::upper_bound(list, sequence, [](const auto& a, const auto& b) { return a->before(*b); });
  list.insert(at, std::move(sequence));
}

std::unique_ptr<Sequence> extract(std::vector<std::unique_ptr<Sequence>>& list, const Sequence* sequence) {
  const auto it = std::ranges::find(list, sequence, &std::unique_ptr<Sequence>::get);
  if (it == list.end()) return nullptr;
  auto out = std::move(*it);
  list.erase(it);
  return out;
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, PrefixCache& pages)
    : options_(options), pages_(pages), several_salts_(options.several_salts) {
  CHECK(options.chunk > 0 && options.rows_max >= options.max_seqs);
  for (int i = options.max_seqs; i-- > 0;) slots_.push_back(i);
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  if (first_salt_ && *first_salt_ != sequence->cache_salt) several_salts_ = true;
  first_salt_ = sequence->cache_salt;
  insert_sorted(waiting_, std::move(sequence));
}

Sequence* Scheduler::find(uint64_t id) {
  for (auto* list : {&running_, &waiting_}) {
    for (const auto& sequence : *list) {
      if (sequence->id == id) return sequence.get();
    }
  }
  return nullptr;
}

std::vector<Sequence*> Scheduler::all() {
  std::vector<Sequence*> all;
  for (auto* list : {&running_, &waiting_}) {
    for (const auto& sequence : *list) all.push_back(sequence.get());
  }
  return all;
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence* sequence) {
  for (PromptImage& image : sequence->images) {
    if (&image == encoding_) encoding_ = nullptr;
    if (image.tower_left > 0) image.tower_left = image.tower_rows;  // another takes the tower
  }
  if (auto waits = extract(waiting_, sequence)) return waits;
  auto out = extract(running_, sequence);
  CHECK(out);
  pages_.insert(out->table, out->hashes, out->computed, true, 0, 0, out->cache_salt);
  pages_.free(out->table);
  slots_.push_back(out->slot);
  out->slot = -1;
  return out;
}

// A sequence is admitted if free and cached pages suffice for all its tokens and one more. Running sequences may use
// these pages first; then preemption resolves the conflict.
bool Scheduler::fits(const Sequence& sequence) const {
  const int full = pages_.pages_for(static_cast<int>(sequence.ids.size()) + 1);
  const int sliding = std::min(full, pages_.pages_for(pages_.window() + options_.chunk) + 1);
  return pages_.available(kFull, full) && pages_.available(kSliding, sliding);
}

// The choices of one prompt (Sequence::group) compute it once: one goes ahead, and the others wait until it has
// computed the prompt, then take its pages over. Where it ends early, the next takes its place. `sibling`: whose pages
// to take, or null.
bool Scheduler::must_wait(const Sequence& sequence, const Sequence*& sibling) const {
  sibling = nullptr;
  if (sequence.group == 0) return false;
  bool one_is_ahead = false;
  for (const auto& other : running_) {
    if (other->group != sequence.group) continue;
    if (other->prefilled()) sibling = other.get();  // the last one has generated least
    one_is_ahead = true;
  }
  for (const auto& other : waiting_) {
    if (other.get() == &sequence) break;
    one_is_ahead = one_is_ahead || other->group == sequence.group;
  }
  return one_is_ahead && !sibling;
}

bool Scheduler::wanted_by_siblings(const Sequence& sequence) const {
  return sequence.group != 0 &&
         std::ranges::any_of(waiting_, [&](const auto& other) { return other->group == sequence.group; });
}

void Scheduler::start(Sequence& sequence, const Sequence* sibling, Step& step) {
  blocked_.clear();
  for (const PromptImage& image : sequence.images) blocked_.push_back({image.begin, image.end});
  sequence.computed = 0;
  // The last token's row gives the logits, so it is always computed. Of a sibling only the prompt is the same.
  if (sibling) {
    sequence.computed = pages_.fork(sibling->table, sequence.table, sequence.prompt - 1, blocked_, step.copies);
  }
  if (sequence.computed == 0 && sequence.reuse_prefix) {
    const int most = static_cast<int>(sequence.ids.size()) - 1;
    sequence.computed =
        pages_.match_prefix(sequence.table, sequence.hashes, most, blocked_, step.copies, sequence.cache_salt);
  }
  if (!sequence.started) sequence.usage.cached_tokens = sequence.computed;
  sequence.slot = slots_.back();
  slots_.pop_back();
  sequence.table.changed = true;
  insert_sorted(running_, extract(waiting_, &sequence));
}

std::map<uint64_t, int> Scheduler::waiting_by_salt() const {
  std::map<uint64_t, int> counts;
  for (const auto& sequence : waiting_) ++counts[sequence->cache_salt];
  return counts;
}

// How many sequences its client runs: the clients of one salt (an API key), or the choices of one request.
int Scheduler::held_by_client(const Sequence& sequence) const {
  return static_cast<int>(std::ranges::count_if(running_, [&](const auto& other) {
    return (sequence.group != 0 && other->group == sequence.group) ||
           (several_salts_ && other->cache_salt == sequence.cache_salt);
  }));
}

// The next to be admitted, or null: of the highest priority that waits, the first one of the client that runs fewest. A
// client that runs something leaves a quarter of the slots to others, so that one request of many choices, or one key,
// never has all. Those behind a sequence need not wait for its output or its sibling.
Sequence* Scheduler::next_admitted(const Sequence*& sibling) const {
  const size_t reserve = static_cast<size_t>(options_.max_seqs) / 4;
  Sequence* best = nullptr;
  int fewest = 0;
  for (const auto& sequence : waiting_) {
    if (best != nullptr && (sequence->priority < best->priority || fewest == 0)) break;
    const Sequence* of = nullptr;
    if (sequence->sits_out() || must_wait(*sequence, of)) continue;
    const int held = held_by_client(*sequence);
    if (held > 0 && slots_.size() <= reserve) continue;
    if (best == nullptr || held < fewest) best = sequence.get(), fewest = held, sibling = of;
  }
  return best;
}

void Scheduler::admit(Step& step) {
  while (!slots_.empty()) {
    const Sequence* sibling = nullptr;
    Sequence* sequence = next_admitted(sibling);
    if (sequence == nullptr || (!running_.empty() && !fits(*sequence))) return;
    start(*sequence, sibling, step);
  }
}

void Scheduler::preempt(Sequence& victim, Step& step) {
  std::erase_if(step.scheduled, [&](const ScheduledRows& rows) {
    if (rows.sequence == &victim) step.rows -= rows.count + rows.drafts;
    return rows.sequence == &victim;
  });
  for (const ImagePart& part : step.image_parts) {
    if (part.sequence == &victim) part.image->tower_left = part.image->tower_rows;
  }
  std::erase_if(step.image_parts, [&](const ImagePart& part) { return part.sequence == &victim; });
  std::unique_ptr<Sequence> sequence = remove(&victim);
  sequence->computed = 0;
  ++sequence->usage.preemptions;
  ++preemptions_;
  insert_sorted(waiting_, std::move(sequence));
}

// Allocates pages for [0, end) of the sequence and preempts later sequences if necessary. False if it must wait for
// earlier ones. The first in order never waits, because one sequence alone always fits.
bool Scheduler::make_room(Sequence& sequence, int end, Step& step) {
  while (!pages_.allocate(sequence.table, end)) {
    Sequence& victim = *running_.back();
    if (&victim == &sequence) return false;
    preempt(victim, step);
  }
  return true;
}

// The number of prompt rows to compute: `budget`, adjusted to whole images. An image that begins within the budget may
// exceed it if the pass has room; otherwise the chunk ends before the image.
int Scheduler::prompt_rows(const Sequence& sequence, int budget, int rows_left) const {
  if (budget <= 0) return 0;
  int end = sequence.computed + std::min({sequence.remaining(), budget, rows_left});
  for (const PromptImage& image : sequence.images) {
    if (image.end <= sequence.computed || end <= image.begin || image.end <= end) continue;
    end = image.end - sequence.computed <= rows_left ? image.end : image.begin;
  }
  return end - sequence.computed;
}

// Gives the step the vision tower's work for the images that the next `budget` rows of the sequence reach, and takes it
// from the budget. Returns the position that its rows may go to: where the first image begins that is not encoded then.
int Scheduler::encode_images(Sequence& sequence, int& budget, Step& step) {
  if (encoding_ != nullptr && encoding_->tower_left == 0) encoding_ = nullptr;  // its embeddings were known after all
  for (PromptImage& image : sequence.images) {
    if (image.end <= sequence.computed || image.tower_left == 0) continue;
    const int before = std::max(0, image.begin - sequence.computed);
    if (before >= budget || (encoding_ != nullptr && encoding_ != &image)) return image.begin;
    const int rows = std::min(image.tower_left, budget - before);
    const bool first = image.tower_left == image.tower_rows, last = image.tower_left == rows;
    image.tower_left -= rows;
    budget -= rows;
    step.image_parts.push_back({&sequence, &image, rows, first, last});
    encoding_ = last ? nullptr : &image;
    if (!last) return image.begin;
  }
  return static_cast<int>(sequence.ids.size());
}

void Scheduler::append(Sequence& sequence, int count, Step& step) {
  step.scheduled.push_back({&sequence, sequence.computed, count, count == sequence.remaining()});
  step.rows += count;
}

// Of these drafts of a sequence that generates, those for which there are pages. Nobody is preempted for drafts, so a
// page for each sequence is left.
int Scheduler::drafts_with_pages(const Sequence& sequence, int drafts) const {
  const int end = sequence.computed + 1;
  const int have = std::max(pages_.pages_for(end), static_cast<int>(sequence.table.pages[kFull].size()));
  const int more = pages_.pages_for(end + drafts) - have;
  if (more <= 0) return drafts;
  const int wanted = more + static_cast<int>(running_.size());
  if (pages_.available(kFull, wanted) && pages_.available(kSliding, wanted)) return drafts;
  return have * pages_.page() - end;
}

// The row of a sequence that generates, and those of its drafts.
void Scheduler::append_next_token(Sequence& sequence, int& drafts_left, Step& step) {
  if (!make_room(sequence, sequence.computed + 1, step)) return;
  int drafts = drafts_with_pages(sequence, std::min(sequence.draft_count(), drafts_left));
  if (!pages_.allocate(sequence.table, sequence.computed + 1 + drafts)) drafts = 0;
  append(sequence, 1, step);
  step.scheduled.back().drafts = drafts;
  step.rows += drafts;
  drafts_left -= drafts;
}

bool Scheduler::one_sits_out() const {
  const auto sits_out = [](const auto& sequence) { return sequence->sits_out(); };
  return std::ranges::any_of(running_, sits_out) || std::ranges::any_of(waiting_, sits_out);
}

// Rows of running prompts, in order, while there is a budget. `longest`: of those that lack at most so many rows, the
// work for their images included.
void Scheduler::append_prompts(Step& step, int longest, int& budget, int& scored) {
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    Sequence& sequence = *running_[i];
    const int64_t work = sequence.prompt_work();
    if (work <= 1 || work > longest || sequence.sits_out()) continue;
    if (std::ranges::any_of(step.scheduled, [&](const auto& rows) { return rows.sequence == &sequence; })) continue;
    const bool scores = sequence.scores();
    if (scores && scored == 0) continue;
    const int encoded_to = encode_images(sequence, budget, step);
    const int part = scores ? std::min(budget, scored) : budget;
    const int count =
        prompt_rows(sequence, part, std::min(encoded_to - sequence.computed, options_.rows_max - step.rows));
    if (count == 0 && encoded_to < static_cast<int>(sequence.ids.size()))
      continue;  // others need not wait for the tower
    if (count == 0) break;
    if (!make_room(sequence, sequence.computed + count, step)) break;
    append(sequence, count, step);
    budget -= count;
    if (scores) scored -= count;
  }
}

// Prompts share the chunk in order, but half of it is first for those that lack a quarter of it at most: a short prompt
// does not wait for long ones that came before it, and they go on at half their speed at least. One whose tokens are
// scored takes a small part.
void Scheduler::append_prompts(Step& step) {
  int scored = options_.scored_max, brief = options_.chunk / 2;
  append_prompts(step, options_.chunk / 4, brief, scored);
  int rest = options_.chunk - (options_.chunk / 2 - brief);
  append_prompts(step, std::numeric_limits<int>::max(), rest, scored);
}

Step Scheduler::next() {
  Step step;
  admit(step);
  int drafts_left = options_.drafts_max;
  // Preemption shortens running_ at its end, so plain indices stay right.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.prompt_work() != 1 || sequence.sits_out()) continue;
    append_next_token(sequence, drafts_left, step);
  }
  append_prompts(step);
  CHECK(!step.scheduled.empty() || !step.image_parts.empty() || (running_.empty() && waiting_.empty()) ||
        one_sits_out());
  return step;
}

void Scheduler::computed(const Step& step) {
  for (const ScheduledRows& rows : step.scheduled) {
    Sequence& sequence = *rows.sequence;
    sequence.computed = rows.begin + rows.count;
    // The next turn's prompt equals this one nearly to its end; the template may write the reply's opening differently.
    constexpr int kTail = 16;
    pages_.insert(sequence.table, sequence.hashes, sequence.computed, false, sequence.prompt - kTail - pages_.window(),
                  sequence.prompt, sequence.cache_salt);
    // A sibling that takes the pages over begins one token earlier than this sequence goes on.
    const bool keep_one = sequence.computed == sequence.prompt && wanted_by_siblings(sequence);
    const int behind = options_.drafts_max > 0 ? kDrafterKeys : keep_one ? 1 : 0;
    pages_.free_out_of_window(sequence.table, sequence.computed - behind);
  }
}

void Scheduler::check() const {
  std::vector<const PageTable*> tables;
  for (const auto& sequence : running_) tables.push_back(&sequence->table);
  for (const auto& sequence : waiting_) CHECK(sequence->table.pages[kFull].empty());
  pages_.check(tables);
  CHECK(slots_.size() + running_.size() == static_cast<size_t>(options_.max_seqs));
}

}  // namespace gemma4
