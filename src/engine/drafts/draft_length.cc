#include "engine/drafts/draft_length.h"

#include <algorithm>
#include <queue>

namespace gemma4 {

void StepTimes::add(int rows, double ms) {
  ++steps_;
  if (static_cast<int>(entries_.size()) <= rows) entries_.resize(static_cast<size_t>(rows) + 1);
  Entry& entry = entries_[static_cast<size_t>(rows)];
  if (steps_ - entry.last > kForgetAfter) entry = {};
  entry.last = steps_;
  ++entry.measured;
  if (entry.measured == 1) {
    entry.ms = ms;
  } else if (entry.measured <= kTrials) {
    entry.ms = std::min(entry.ms, ms);
  } else {
    entry.ms += kWeight * (ms - entry.ms);
  }
}

double StepTimes::predict(int rows) const {
  const auto known = [&](int count) {
    if (count >= static_cast<int>(entries_.size())) return false;
    const Entry& entry = entries_[static_cast<size_t>(count)];
    return entry.measured >= kTrials && steps_ - entry.last <= kForgetAfter;
  };
  const int end = static_cast<int>(entries_.size());
  double ms = 0, first_ms = 0;  // more rows never take less
  int first = 0, last = 0;
  for (int i = 0; i < std::min(rows + 1, end); ++i) {
    if (!known(i)) continue;
    ms = std::max(ms, entries_[static_cast<size_t>(i)].ms);
    if (first == 0) first = i, first_ms = ms;
    last = i;
  }
  bool more_known = false;
  for (int i = rows; i < end; ++i) more_known = more_known || known(i);
  if (last > first && !more_known) return ms + (ms - first_ms) / (last - first) * (rows - last);
  for (int i = rows + 1; ms == 0 && i < end; ++i) {
    if (known(i)) ms = entries_[static_cast<size_t>(i)].ms;
  }
  return ms;
}

void AcceptRate::add(int accepted, int drafted) {
  if (drafted == 0) {
    // Half of what was learnt is left after about 70 steps.
    constexpr double kFade = 0.01;
    accepted_ += kFade * (kAssumed * kTrust - accepted_);
    tried_ += kFade * (kTrust - tried_);
    return;
  }
  // Drafts after the first that was rejected were not tried.
  accepted_ = kKept * accepted_ + accepted;
  tried_ = kKept * tried_ + accepted + (accepted < drafted ? 1 : 0);
}

std::vector<int> plan_drafts(std::span<const double> rates, std::span<const int> most, const DraftPlan& plan,
                             const StepTimes& times) {
  struct Next {
    double chance;  // that the next draft of this sequence becomes a token
    size_t sequence;
    bool operator<(const Next& other) const {
      return chance != other.chance ? chance < other.chance : sequence > other.sequence;
    }
  };
  std::priority_queue<Next> queue;
  for (size_t i = 0; i < rates.size(); ++i) {
    if (most[i] > 0) queue.push({rates[i], i});
  }
  std::vector<int> now(rates.size(), 0), best = now;
  const int sequences = static_cast<int>(rates.size());
  // Where no time is known, a step of any rows takes 1: drafts are tried, and measured.
  const auto step_ms = [&](int rows) {
    const double ms = times.predict(rows);
    return ms > 0 ? ms : 1;
  };
  double tokens = sequences, best_rate = tokens / step_ms(sequences);
  int drafts = 0, deepest = 0;
  // Always the likeliest draft next, so each count of rows is filled in the best way.
  while (!queue.empty() && drafts < plan.rows_max) {
    const Next next = queue.top();
    queue.pop();
    tokens += next.chance;
    ++drafts;
    const int depth = ++now[next.sequence];
    deepest = std::max(deepest, depth);
    if (depth < most[next.sequence]) queue.push({next.chance * rates[next.sequence], next.sequence});
    const double rate = tokens / (step_ms(sequences + drafts) + deepest * plan.draft_ms);
    if (rate > best_rate) best_rate = rate, best = now;
  }
  return best;
}

}  // namespace gemma4
