#include "engine/drafts/verify.h"

#include "base/check.h"

namespace gemma4 {

SamplingInput verify_input(const OutputProcessor& output, const Sequence& sequence, const DrawState& state,
                           int drafts) {
  SamplingInput sampling{sequence.sampling};
  sampling.step = sequence.ids.size() - sequence.prompt + drafts;
  sampling.counts = state.counts;
  const bool early = sequence.usage.generated_tokens + drafts < sequence.min_tokens;
  sampling.bias = early ? sequence.bias_early : sequence.bias;
  sampling.allowed = output.allowed_by_budget(state);
  if (state.masked && state.next_token != DrawState::NextToken::kEndOfThought) {
    const std::optional<Grammar>& grammar = drafts > 0 ? sequence.lookahead[drafts - 1].grammar : sequence.grammar;
    if (grammar) sampling.allowed = grammar->mask();
  }
  return sampling;
}

Round accept_drafts(const OutputProcessor& output, Sequence& sequence, std::span<const int32_t> drafts,
                    std::span<const int32_t> drawn) {
  CHECK(drawn.size() == drafts.size() + 1);
  Round round;
  for (size_t i = 0; i < drawn.size() && !round.finish; ++i) {
    ++round.drawn;
    bool is_end = false;
    round.finish = output.append(sequence, drawn[i], is_end);
    if (is_end) {
      round.end_token = drawn[i];
      break;
    }
    round.tokens.push_back(drawn[i]);
    if (i == drafts.size() || drawn[i] != drafts[i]) break;
    ++round.accepted;
  }
  return round;
}

}  // namespace gemma4
