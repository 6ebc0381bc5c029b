#include "engine/engine_core.h"

#include <algorithm>
#include <limits>
#include <new>

#include "base/check.h"

namespace gemma4 {
namespace {

constexpr int kHeavyThreadsMax = 64;
// How long a step waits for late output: a share of the last step, within bounds.
constexpr int kLateShare = 4;
constexpr Clock::duration kLateLeast = std::chrono::microseconds(500), kLateMost = std::chrono::milliseconds(20);

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// The positions of these rows whose logits score the token after them. Empty where nothing is to be scored.
std::pair<int, int> scored_rows(const ScheduledRows& rows) {
  const Sequence& sequence = *rows.sequence;
  if (!sequence.scores()) return {0, 0};
  const int begin = std::max(rows.begin, std::max(sequence.scored, 1) - 1);
  const int end = std::min(rows.begin + rows.count, sequence.prompt - 1);
  return begin < end ? std::pair(begin, end) : std::pair(0, 0);
}

// The worker has found that the answer ended before them. So the sequence is as it would be without drafts.
void drop_last_tokens(Sequence& sequence, int count) {
  const size_t left = sequence.ids.size() - static_cast<size_t>(count);
  sequence.ids.resize(left);
  sequence.hashes.resize(left);
  if (count > 0) sequence.computed = std::min(sequence.computed, static_cast<int>(left) - 1);
}

}  // namespace

EngineCore::EngineCore(Model& model, const OutputProcessor& output, ImageCache& images, const EngineOptions& options,
                       std::function<void()> wake)
    : model_(model),
      output_(output),
      images_(images),
      pages_({model.options().page,
              model.config().window,
              {model.options().pages[kSliding], model.options().pages[kFull]},
              options.prefix_cache,
              options.share_cache}),
      scheduler_(
          {options.max_seqs, options.chunk, model.options().rows_max - (draft_rows_max(options) > 0 ? kDrafterKeys : 0),
           draft_rows_max(options), kScoredRowsMax, options.several_salts},
          pages_),
      draft_source_(model, options),
      workers_(output, std::min(options.max_seqs, kHeavyThreadsMax), std::move(wake)) {
  static_assert(kSliding == 0 && kFull == 1);
}

void EngineCore::add(std::unique_ptr<Sequence> sequence) {
  stats_.images += sequence->images.size();
  sequence->usage.drafts.wanted = stats_.drafts.wanted = draft_source_.on();
  for (PromptImage& image : sequence->images) {
    if (!image.patches) continue;
    image.tower_rows = model_.image_rows(image.patches->grid_w * image.patches->grid_h);
    image.tower_left = image.tower_rows;
  }
  stuck_ = false;
  scheduler_.add(std::move(sequence));
}

// The ends of sequences. Their pages are free at once; the rest of them goes when the workers have sent the last event.

void EngineCore::finish(Sequence* sequence, OutputJob job) {
  const bool wanted = job.type == OutputJob::kFinish && job.finish != Finish::kCancelled;
  if (!wanted && sequence->unwanted) sequence->unwanted->drop();
  ending_[sequence] = scheduler_.remove(sequence);
  stuck_ = false;
  workers_.post(*sequence, std::move(job));
}

void EngineCore::end(Sequence* sequence, Finish how) {
  OutputJob job;
  job.type = OutputJob::kFinish;
  job.finish = how;
  finish(sequence, std::move(job));
}

void EngineCore::fail(Sequence* sequence, const std::string& message, bool device, bool budget) {
  OutputJob job;
  job.type = OutputJob::kFail;
  job.message = message;
  job.device = device;
  job.budget = budget;
  finish(sequence, std::move(job));
}

void EngineCore::take_results() {
  for (OutputResult& result : workers_.take_results()) {
    stuck_ = false;
    Sequence* sequence = result.sequence;
    const size_t capacity = result.logits.capacity();  // a prompt's many rows are freed
    const bool one_row = capacity < 2 * static_cast<size_t>(model_.config().vocab);
    if (capacity > 0 && one_row) spare_logits_.push_back(std::move(result.logits));
    stats_.generated_tokens -= static_cast<uint64_t>(result.unread);
    stats_.drafts.add_accepted(result.accepted);
    if (result.ended) {
      ++(result.failed ? stats_.failed : result.finish == Finish::kCancelled ? stats_.cancelled : stats_.finished);
      const bool unwanted = result.failed || result.finish == Finish::kCancelled;
      if (!unwanted && sequence->unwanted) sequence->unwanted->drop();
      ending_.erase(sequence);
      images_.trim();
      continue;
    }
    --sequence->jobs;
    if (ending_.contains(sequence)) continue;
    if (!result.error.empty()) {
      fail(sequence, result.error, false, result.budget);
    } else if (result.finish) {
      drop_last_tokens(*sequence, result.unread);
      end(sequence, *result.finish);
    }
  }
}

void EngineCore::drain() {
  for (take_results(); !ending_.empty(); take_results()) workers_.wait(Clock::now() + std::chrono::seconds(1));
}

void EngineCore::cancel(uint64_t id) {
  if (Sequence* sequence = scheduler_.find(id)) end(sequence, Finish::kCancelled);
}

void EngineCore::cancel_all() {
  for (Sequence* sequence : scheduler_.all()) end(sequence, Finish::kCancelled);
}

void EngineCore::fail_all(const std::string& message, bool device) {
  for (Sequence* sequence : scheduler_.all()) fail(sequence, message, device);
}

// Images.

// Does this part of an image's encoding. False: the image cannot be encoded, and its sequence has failed.
bool EngineCore::encode(const ImagePart& part) {
  Sequence& sequence = *part.sequence;
  PromptImage& image = *part.image;
  const Clock::time_point start = Clock::now();
  std::optional<Model::ImageEmbeddings> made;
  try {
    if (part.first) {
      if (auto known = images_.find(image.hash)) {
        share_embeddings(sequence, image, *known);
        return true;
      }
      const Patches& patches = *image.patches;
      model_.begin_image({patches.values.data(), patches.xy.data(), patches.grid_w * patches.grid_h});
    }
    if (!image.embeddings.rows) made = model_.encode_more(part.last ? std::numeric_limits<int>::max() : part.rows);
  } catch (const DeviceError&) {
    throw;
  } catch (const Error& error) {
    fail(&sequence, error.what(), false);
    return false;
  } catch (const std::bad_alloc&) {
    fail(&sequence, "there is no memory for this image", false);
    return false;
  }
  const double spent = milliseconds_since(start);
  sequence.usage.image_ms += spent;
  stats_.image_ms += spent;
  if (!made) return true;
  CHECK(made->rows.rows() == image.end - image.begin);
  images_.insert(image.hash, *made);
  share_embeddings(sequence, image, *made);
  ++stats_.images_encoded;
  return true;
}

// The other choices of the prompt need the picture's patches no more either.
void EngineCore::share_embeddings(const Sequence& sequence, const PromptImage& image,
                                  const Model::ImageEmbeddings& embeddings) {
  const int begin = image.begin;
  for (Sequence* other : scheduler_.all()) {
    if (other != &sequence && (sequence.group == 0 || other->group != sequence.group)) continue;
    for (PromptImage& same : other->images) {
      if (same.begin != begin) continue;
      same.embeddings = embeddings;
      same.tower_left = 0;
      same.patches.reset();
      same.held.reset();
    }
  }
}

void EngineCore::note_start(Sequence& sequence) {
  if (sequence.started) return;
  sequence.started = true;
  sequence.scheduled = Clock::now();
  for (PromptImage& image : sequence.images) {
    if (!image.patches) image.held.reset();  // its embeddings were known
  }
  stats_.prompt_tokens += sequence.usage.prompt_tokens;
  stats_.cached_tokens += sequence.usage.cached_tokens;
  stats_.prefix_hits += sequence.usage.cached_tokens > 0;
}

// If an image fails, its sequence fails and leaves the step.
void EngineCore::encode_images(Step& step) {
  std::vector<const Sequence*> failed;
  const auto has_failed = [&](const Sequence* sequence) { return std::ranges::find(failed, sequence) != failed.end(); };
  for (const ImagePart& part : step.image_parts) {
    if (has_failed(part.sequence)) continue;
    note_start(*part.sequence);
    if (!encode(part)) failed.push_back(part.sequence);
  }
  std::erase_if(step.scheduled, [&](const ScheduledRows& rows) { return has_failed(rows.sequence); });
  for (const ScheduledRows& rows : step.scheduled) note_start(*rows.sequence);
}

// Forward.

// Uploads the sequence's page table to the model. The table of the sliding layers is a ring: page i of the sequence is
// at index i modulo the width, and the width covers all pages that are live at the same time.
void EngineCore::update_page_table(Sequence& sequence) {
  PageTable& table = sequence.table;
  if (!table.changed) return;
  table.changed = false;
  model_.set_pages(kFull, sequence.slot, table.pages[kFull]);
  const std::vector<int32_t>& sliding = table.pages[kSliding];
  const int width = model_.options().pages_per_seq[kSliding];
  CHECK(static_cast<int>(sliding.size()) - table.first_sliding <= width);
  page_list_.assign(width, 0);
  for (size_t i = table.first_sliding; i < sliding.size(); ++i) page_list_[i % width] = sliding[i];
  model_.set_pages(kSliding, sequence.slot, page_list_);
}

// The last row after `drafts` drafts draws a token. `state`: of the sequence, after these.
void EngineCore::want_token(const Sequence& sequence, const DrawState& state, int drafts) {
  batch_.logit_rows.push_back(static_cast<int32_t>(batch_.ids.size()) - 1);
  batch_.sampling.push_back(verify_input(output_, sequence, state, drafts));
}

// The next step writes these positions again, from the first whose draft is rejected on, before any row reads them: all
// keys of a pass are written before one is read, and a row reads none behind its own position. So the keys of rejected
// drafts are never read, and taking drafts back is not to count them.
void EngineCore::append_drafts(const ScheduledRows& rows) {
  const Sequence& sequence = *rows.sequence;
  if (rows.drafts == 0) return;
  const DrawState* before = &sequence;
  for (int i = 0; i < rows.drafts; ++i) {
    const int32_t token = sequence.draft(i);
    append_row(batch_, model_.config(), token, sequence.slot, rows.begin + rows.count + i, -1);
    DrawState& state = states_.emplace_back(*before);
    output_.follow(sequence, state, token);
    want_token(sequence, state, i + 1);
    before = &state;
  }
}

void EngineCore::append(const ScheduledRows& rows) {
  Sequence& sequence = *rows.sequence;
  const Config& config = model_.config();
  auto image = sequence.images.begin();
  for (int pos = rows.begin; pos < rows.begin + rows.count; ++pos) {
    while (image != sequence.images.end() && image->end <= pos) ++image;
    const bool soft = image != sequence.images.end() && image->begin <= pos;
    if (soft) {
      if (pos == image->begin) batch_.image_embeddings.push_back(image->embeddings.rows);
      batch_.image_index.push_back(static_cast<int32_t>(batch_.ids.size()));
    }
    append_row(batch_, config, sequence.ids[pos], sequence.slot, pos, soft ? image->end - 1 : -1);
  }
  const auto [scored_begin, scored_end] = scored_rows(rows);
  for (int pos = scored_begin; pos < scored_end; ++pos) {
    batch_.logit_rows.push_back(static_cast<int32_t>(batch_.ids.size()) - (rows.begin + rows.count - pos));
    batch_.sampling.emplace_back().temperature = 0;  // what it draws is dropped
  }
  if (!rows.last) return;
  want_token(sequence, sequence, 0);
  append_drafts(rows);
}

void EngineCore::fill_batch(const Step& step) {
  batch_.ids.clear();
  for (auto& rows : batch_.rows) rows.clear();
  batch_.image_index.clear();
  batch_.image_embeddings.clear();
  batch_.logit_rows.clear();
  batch_.sampling.clear();
  states_.clear();
  for (const ScheduledRows& rows : step.scheduled) {
    update_page_table(*rows.sequence);
    append(rows);
  }
}

Clock::time_point EngineCore::next_step() const {
  if (stuck_ || scheduler_.waiting() + scheduler_.running() == 0) return Clock::time_point::max();
  const bool late = std::ranges::any_of(scheduler_.runs(), [&](const auto& sequence) {
    return sequence->sits_out() && sequence->last_step == stats_.steps;
  });
  return late ? late_until_ : Clock::time_point::min();
}

void EngineCore::step() {
  take_results();
  Step step = scheduler_.next();
  encode_images(step);
  for (const PageCopy& copy : step.copies) model_.copy_page(copy.kind, copy.from, copy.to);
  stuck_ = step.scheduled.empty() && step.image_parts.empty();
  if (step.scheduled.empty()) return;
  fill_batch(step);
  const Clock::time_point start = Clock::now();
  const std::vector<int32_t> tokens = model_.forward(batch_);
  const bool logprobs = std::ranges::any_of(step.scheduled, [](const ScheduledRows& rows) {
    return (rows.last && rows.sequence->logprobs >= 0) || rows.sequence->scores();
  });
  if (logprobs) {
    logits_.resize(static_cast<size_t>(model_.options().logits_max) * model_.config().vocab);
    model_.read_logits(logits_.data());
  }
  const Clock::time_point done = Clock::now();
  stats_.forward_ms += std::chrono::duration<double, std::milli>(done - start).count();
  ++stats_.steps;
  stats_.computed_tokens += batch_.ids.size();
  late_until_ = done + std::clamp<Clock::duration>((done - start) / kLateShare, kLateLeast, kLateMost);
  const bool tokens_alone = batch_.ids.size() == batch_.sampling.size();
  if (tokens_alone) draft_source_.note_step(step.rows, std::chrono::duration<double, std::milli>(done - start).count());
  commit(step, tokens);
}

// Hands the tokens whose logits this step has made to a worker. `logit_row`: the sequence's first; advances past them.
void EngineCore::score_prompt(Sequence& sequence, const ScheduledRows& rows, size_t& logit_row) {
  const auto [begin, end] = scored_rows(rows);
  const bool alone = sequence.prompt == 1 && sequence.scores();  // the first token has no row
  if (begin == end && !alone) return;
  OutputJob job;
  job.type = OutputJob::kScores;
  const int first = sequence.scored;
  sequence.scored = alone ? 1 : end + 1;
  job.tokens.assign(sequence.ids.begin() + first, sequence.ids.begin() + sequence.scored);
  const size_t vocab = model_.config().vocab, count = end - begin;
  const auto logits = std::span(logits_).subspan(logit_row * vocab, count * vocab);
  job.logits.assign(logits.begin(), logits.end());
  logit_row += count;
  ++sequence.jobs;
  sequence.last_step = stats_.steps;
  workers_.post(sequence, std::move(job));
}

// `logit_row`: of the job's first token, where the sequence wants log probabilities.
void EngineCore::post(Sequence& sequence, OutputJob job, size_t logit_row) {
  if (sequence.logprobs >= 0 && job.type == OutputJob::kTokens) {
    if (!spare_logits_.empty()) {
      job.logits = std::move(spare_logits_.back());
      spare_logits_.pop_back();
    }
    const size_t vocab = model_.config().vocab;
    const auto logits = std::span(logits_).subspan(logit_row * vocab, job.tokens.size() * vocab);
    job.logits.assign(logits.begin(), logits.end());
  }
  ++sequence.jobs;
  sequence.last_step = stats_.steps;
  workers_.post(sequence, std::move(job));
}

// `drawn`: [1 + drafts] by the sequence's rows. Then rows.count is the number of rows that count as computed.
Round EngineCore::accept(ScheduledRows& rows, std::span<const int32_t> drawn) {
  Sequence& sequence = *rows.sequence;
  std::vector<int32_t> drafts;
  for (int i = 0; i < rows.drafts; ++i) drafts.push_back(sequence.draft(i));
  const Round round = accept_drafts(output_, sequence, drafts, drawn);
  if (!drafts.empty()) {
    ++sequence.usage.drafts.rounds, ++stats_.drafts.rounds;
    sequence.usage.drafts.drafted += drafts.size(), stats_.drafts.drafted += drafts.size();
  }
  sequence.accept_rate.add(round.accepted, rows.drafts);
  stats_.generated_tokens += static_cast<uint64_t>(round.drawn);
  rows.count += round.drawn - 1;
  return round;
}

void EngineCore::commit(const ScheduledRows& rows, const Round& round, size_t logit_row) {
  Sequence& sequence = *rows.sequence;
  if (!round.tokens.empty()) {
    OutputJob job;
    job.tokens = round.tokens;
    job.accepted = round.accepted;
    job.last = round.finish.has_value();
    post(sequence, std::move(job), logit_row);
  }
  // Who has the prompt's tokens scored counts tokens, and the end token is one.
  if (round.end_token >= 0 && sequence.prompt_logprobs >= 0) {
    OutputJob job;
    job.tokens = {round.end_token};
    job.scored_only = job.last = true;
    post(sequence, std::move(job), logit_row + round.tokens.size());
  }
  if (round.finish) end(&sequence, *round.finish);
}

void EngineCore::commit(Step& step, const std::vector<int32_t>& tokens) {
  struct Drawn {
    ScheduledRows* rows;
    size_t logit_row;
    Round round;
  };
  std::vector<Drawn> all;
  size_t row = 0;
  for (ScheduledRows& rows : step.scheduled) {
    score_prompt(*rows.sequence, rows, row);
    if (!rows.last) continue;
    Drawn& drawn = all.emplace_back(Drawn{&rows, row, {}});
    const size_t count = 1 + static_cast<size_t>(rows.drafts);
    if (!rows.sequence->score_only) drawn.round = accept(rows, std::span(tokens).subspan(row, count));
    row += count;
  }
  scheduler_.computed(step);
  std::vector<DraftSource::Candidate> candidates;
  for (Drawn& drawn : all) {
    Sequence& sequence = *drawn.rows->sequence;
    if (sequence.score_only) {
      end(&sequence, Finish::kLength);
      continue;
    }
    commit(*drawn.rows, drawn.round, drawn.logit_row);
    const auto hidden_row = static_cast<int>(drawn.logit_row) + drawn.round.drawn - 1;
    if (!drawn.round.finish) candidates.push_back({&sequence, hidden_row});
  }
  if (draft_source_.on()) draft(candidates);
}

// Masks of the rows of drafts are made by the workers, beside the one for the next token.
void EngineCore::draft(std::span<const DraftSource::Candidate> candidates) {
  draft_source_.draft(candidates);
  for (const DraftSource::Candidate& candidate : candidates) {
    Sequence& sequence = *candidate.sequence;
    output_.cut_drafts(sequence);
    if (!sequence.masked || sequence.drafts.empty()) continue;
    OutputJob job;
    job.type = OutputJob::kDrafts;
    job.tokens = sequence.drafts;
    post(sequence, std::move(job), 0);
  }
}

EngineStats EngineCore::stats() const {
  EngineStats stats = stats_;
  stats.waiting = scheduler_.waiting();
  stats.running = scheduler_.running() + static_cast<int>(ending_.size());  // until the last event has gone out
  stats.preemptions = scheduler_.preemptions();
  for (const AttentionKind kind : {kSliding, kFull}) {
    stats.pages_total[kind] = pages_.total_pages(kind);
    stats.pages_used[kind] = pages_.used_pages(kind);
    stats.pages_cached[kind] = pages_.cached_pages(kind);
  }
  return stats;
}

}  // namespace gemma4
