#include "engine/drafts/draft_source.h"

#include <algorithm>

#include "base/check.h"

namespace gemma4 {
namespace {

// Beyond so many rows a step's time grows with them on every device that we know, so more do not pay.
constexpr int kAdaptiveRowsMax = 64;

// Drafts that can become tokens of the answer: one more token comes with them.
int most_drafts(const Sequence& sequence) {
  if (sequence.score_only || sequence.prompt_logprobs >= 0) return 0;
  const int left = sequence.limit - static_cast<int>(sequence.ids.size());
  return std::clamp(left - 1, 0, kDraftsMax);
}

}  // namespace

int draft_rows_max(const EngineOptions& options) {
  if ((options.drafter.empty() && !options.propose) || options.draft_tokens == 0) return 0;
  if (options.draft_tokens > 0) return options.max_seqs * options.draft_tokens;
  return std::min(options.max_seqs * kDraftsMax, std::max(kAdaptiveRowsMax, options.max_seqs));
}

DraftSource::DraftSource(Model& model, const EngineOptions& options)
    : model_(model), options_(options), rows_max_(draft_rows_max(options)) {}

std::vector<int> DraftSource::lengths(std::span<const Candidate> candidates) const {
  std::vector<int> most;
  std::vector<double> rates;
  for (const Candidate& candidate : candidates) {
    most.push_back(most_drafts(*candidate.sequence));
    rates.push_back(candidate.sequence->accept_rate.value());
  }
  if (options_.draft_tokens < 0) return plan_drafts(rates, most, {rows_max_, draft_ms_}, times_);
  for (int& count : most) count = std::min(count, options_.draft_tokens);
  return most;
}

void DraftSource::draft(std::span<const Candidate> candidates) {
  if (candidates.empty()) return;
  const std::vector<int> lengths = this->lengths(candidates);
  if (!options_.propose && options_.drafter != kNgramDrafter) return draft_with_model(candidates, lengths);
  for (size_t i = 0; i < candidates.size(); ++i) {
    Sequence& sequence = *candidates[i].sequence;
    sequence.drafts.clear();
    if (lengths[i] == 0) continue;
    if (options_.propose) {
      sequence.drafts = options_.propose(sequence.ids, lengths[i]);
      CHECK(static_cast<int>(sequence.drafts.size()) <= lengths[i]);
    } else if (sequence.ngrams) {
      sequence.drafts = sequence.ngrams->draft(sequence.ids, lengths[i]);
    }
  }
}

// A prefix from the cache may begin later than the drafter's first key.
bool DraftSource::has_window(const Sequence& sequence) const {
  const int first = static_cast<int>(sequence.ids.size()) - 2 - model_.config().window;
  return sequence.table.first_sliding * model_.options().page <= std::max(0, first);
}

void DraftSource::draft_with_model(std::span<const Candidate> candidates, std::span<const int> lengths) {
  std::vector<DraftRow> rows;
  std::vector<size_t> drafted;  // indices of candidates
  for (size_t i = 0; i < candidates.size(); ++i) {
    Sequence& sequence = *candidates[i].sequence;
    sequence.drafts.clear();
    if (lengths[i] == 0 || !has_window(sequence)) continue;
    drafted.push_back(i);
    rows.push_back(
        {sequence.slot, sequence.ids.back(), static_cast<int>(sequence.ids.size()) - 1, candidates[i].hidden_row});
  }
  if (rows.empty()) return;
  const int count = *std::ranges::max_element(lengths);
  const Clock::time_point start = Clock::now();
  const std::vector<int32_t> ids = model_.draft(rows, count);
  const double ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count() / count;
  draft_ms_ = draft_ms_ == 0 ? ms : draft_ms_ + 0.1 * (ms - draft_ms_);
  for (size_t i = 0; i < drafted.size(); ++i) {
    const auto first = ids.begin() + static_cast<ptrdiff_t>(i) * count;
    candidates[drafted[i]].sequence->drafts.assign(first, first + lengths[drafted[i]]);
  }
}

}  // namespace gemma4
