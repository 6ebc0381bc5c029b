// OutputProcessor: processes sampled tokens. It appends them to the sequence (on the engine's thread), turns them into
// events for the sink (on a worker's), and knows when an answer is over.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/sequence.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

struct OutputJob {
  enum Type { kTokens, kDrafts, kScores, kFinish, kFail } type = kTokens;
  std::vector<int32_t> tokens;  // kTokens: that one step drew; kDrafts: to follow them; kScores: of the prompt
  int accepted = 0;             // kTokens: the first so many were drafts
  bool scored_only = false;     // kTokens: an end token, which is no part of the answer but has a log probability
  bool last = false;            // kTokens: no other token comes, so no mask is needed
  // [tokens, vocabulary] of kTokens whose sequence wants log probabilities, and of kScores, but none of the prompt's
  // first token.
  std::vector<float> logits;
  Finish finish = Finish::kStop;        // kFinish
  std::string message;                  // kFail
  bool device = false, budget = false;  // kFail
};

class OutputProcessor {
 public:
  OutputProcessor(const Tokenizer& tokenizer, std::vector<int32_t> end_ids);

  // Whether a prompt ends inside the thought channel. (The template opens it after a tool's result.)
  bool in_thought(std::span<const int32_t> ids) const;

  // Initializes the parser and the penalty counts from the prompt.
  void begin(Sequence& sequence) const;

  // On the engine's thread: appends the sampled token, unless it is an end token. Returns how the answer ended, if
  // that needs no look at its text.
  std::optional<Finish> append(Sequence& sequence, int32_t token, bool& is_end) const;

  // On the engine's thread: what the next token may be, by the budget of thoughts. Empty: any.
  std::span<const uint32_t> allowed_by_budget(const DrawState& state) const;

  // On the engine's thread: `state`, the sequence's own or a copy that has followed drafts, follows one more token.
  void follow(const Sequence& sequence, DrawState& state, int32_t token) const;

  // On the engine's thread: drops the drafts that are of no use. A draft that ends the answer saves no step. A call of
  // a lazy grammar needs masks that nobody has made.
  void cut_drafts(Sequence& sequence) const;

  // On a worker: the events of an appended token. `logits`: [vocabulary] if the sequence wants logprobs, else empty.
  // Prepares the grammar's mask for the next token, unless this is the `last`. Returns how the answer ended, if its
  // text or grammar ends it. Throws the errors of the grammar's budget.
  std::optional<Finish> read(Sequence& sequence, int32_t token, std::span<const float> logits, bool last) const;

  // On a worker: the same for the tokens of one step. After the end, tokens are counted and not read.
  std::optional<Finish> read_all(Sequence& sequence, const OutputJob& job) const;

  // On a worker: makes the masks of rows that follow `drafts`, as far as the grammar allows these.
  void look_ahead(Sequence& sequence, std::span<const int32_t> drafts) const;

  // On a worker: the event of tokens of the prompt. `logits`: [tokens, vocabulary], but none of the prompt's first
  // token.
  void score(Sequence& sequence, std::span<const int32_t> tokens, std::span<const float> logits) const;
  // On a worker: the token's log probability goes out with the next event, where there are `logits`.
  void hold_logprobs(Sequence& sequence, int32_t token, std::span<const float> logits) const;

  void finish(Sequence& sequence, Finish how) const;          // the last event
  void fail(Sequence& sequence, const OutputJob& why) const;  // the last event

  const std::vector<int32_t>& end_ids() const { return end_ids_; }

 private:
  void advance_grammar(Sequence& sequence, int32_t token) const;
  void prepare_mask(Sequence& sequence) const;
  void emit(Sequence& sequence, std::vector<OutputEvent> events) const;
  bool is_end(const Sequence& sequence, int32_t token) const;
  static void count(DrawState& state, int32_t token, int times);
  void count_thought(const Sequence& sequence, DrawState& state, int32_t token) const;

  Tokenizer tokenizer_;
  std::vector<int32_t> end_ids_;
  int32_t channel_begin_, channel_end_, call_begin_, call_end_;
  std::vector<uint32_t> only_end_of_thought_, no_thought_;  // masks, a bit for each id
};

}  // namespace gemma4
