// Verifying drafts: what does each row of a step draw, and which of the tokens drawn are kept? Row i of a sequence
// follows i drafts and is sampled as if it were decoded alone after them: with its own step number, counts of
// penalties, bias, budget of thoughts and grammar mask. Its token is kept, and the next row's too, as long as the token
// is the draft that the next row has computed. So an answer is, token by token, the one without drafts.
// Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", where a draft's distribution
// is a single point. On the engine's thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/output_processor.h"
#include "engine/sequence.h"

namespace gemma4 {

// How the row after the first `drafts` drafts is sampled. `state`: of the sequence, after these; both must outlive it.
SamplingInput verify_input(const OutputProcessor& output, const Sequence& sequence, const DrawState& state, int drafts);

// What a step has given one sequence.
struct Round {
  std::vector<int32_t> tokens;  // part of the answer, so an end token is none of them
  int32_t end_token = -1;
  int drawn = 0;     // tokens, the end token included
  int accepted = 0;  // the first so many tokens were drafts
  std::optional<Finish> finish;
};

// Appends what is kept of `drawn` [1 + drafts] to the sequence, one token after the other, up to its end.
Round accept_drafts(const OutputProcessor& output, Sequence& sequence, std::span<const int32_t> drafts,
                    std::span<const int32_t> drawn);

}  // namespace gemma4
