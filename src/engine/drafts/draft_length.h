// How many tokens should be drafted? More drafts are more tokens of a step, each less likely than the one before it to
// be accepted, and more rows, which take time. A plan asks for the drafts that make the most tokens a second of the
// next step, by what steps took and what was accepted so far.
// Expected tokens of a round whose drafts are accepted with the rate a each: 1 + a + a^2 + ... + a^k (Leviathan et al.,
// "Fast Inference from Transformers via Speculative Decoding", equation 1).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gemma4 {

constexpr int kDraftsMax = 16;  // of one sequence in one step

// The milliseconds of a step by its rows, measured as steps are made.
class StepTimes {
 public:
  void add(int rows, double ms);
  // Of a count that was not measured: the time of fewer rows, or, where nothing is known of those, of more. Beyond all
  // that were, each row takes what the rows before it took in the mean. 0: nothing is known.
  double predict(int rows) const;

 private:
  // The first steps of a count may record a graph or touch new memory. The least of so many is what a step takes.
  static constexpr int kTrials = 4;
  static constexpr double kWeight = 0.1;          // of a new measurement after that
  static constexpr uint64_t kForgetAfter = 2000;  // steps; so that a count is measured anew now and then
  struct Entry {
    int measured = 0;
    double ms = 0;
    uint64_t last = 0;  // step
  };
  std::vector<Entry> entries_;  // [rows]
  uint64_t steps_ = 0;
};

// The rate at which a sequence's drafts are accepted, lately. It goes back to what is assumed of a new sequence while
// nothing is drafted, so that drafts are tried again.
class AcceptRate {
 public:
  void add(int accepted, int drafted);
  double value() const { return accepted_ / tried_; }

 private:
  static constexpr double kAssumed = 0.7, kTrust = 2;  // as after so many drafts
  static constexpr double kKept = 0.9;                 // of what earlier rounds count, with each round
  double accepted_ = kAssumed * kTrust, tried_ = kTrust;
};

struct DraftPlan {
  int rows_max = 0;     // drafts of all sequences together
  double draft_ms = 0;  // of one draft for all sequences: they are drafted one after the other
};

// Drafts of each sequence whose rate of acceptance is `rates[i]`, at most `most[i]`.
std::vector<int> plan_drafts(std::span<const double> rates, std::span<const int> most, const DraftPlan& plan,
                             const StepTimes& times);

}  // namespace gemma4
