// bench with drafts: what a round of speculative decoding takes, and what it gives. The draft and the verify step are
// computed as the engine computes them. A model of random weights accepts nothing, so --accept decides how many drafts
// of a round are accepted, with a seeded coin.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "cli/command_line.h"
#include "engine/engine.h"
#include "model/model.h"

namespace gemma4 {

struct BenchDraftFlags {
  // Share of the rounds whose first 1, 2, ... drafts are all accepted; empty: those are accepted that the model draws.
  std::vector<double> accept;
  int tokens = 0;  // drafts of a round; 0: there is no drafter
};

// --drafter, --draft-tokens, --accept.
void add_bench_draft_flags(CommandLine& line, EngineOptions& options, BenchDraftFlags& flags);

// Sets `tokens` from the options. Throws Error where the flags contradict each other.
void resolve_draft_flags(const EngineOptions& options, BenchDraftFlags& flags);

// How many of a round's drafts are accepted: draft i with the chance accept[i] / accept[i - 1], where i - 1 were.
class AcceptCoin {
 public:
  explicit AcceptCoin(std::vector<double> accept) : accept_(std::move(accept)) {}
  int toss();

 private:
  std::vector<double> accept_;
  std::mt19937_64 random_{11};
};

struct DraftRounds {
  int rounds = 0;
  double seconds = 0;  // of all of them: draft and verify steps
  double tokens = 0;   // that one sequence has got
};

// `rounds` rounds of each of `seqs` sequences, from position `depth` on; the positions before it are computed. Of
// `repeat` times the median.
DraftRounds measure_rounds(Model& model, const BenchDraftFlags& flags, int seqs, int depth, int rounds, int repeat,
                           AcceptCoin& coin);

}  // namespace gemma4
