// Sequence: the state of one choice of a request: its tokens, how many of them are computed, its pages, its sampling
// parameters and its sink. Engine::submit() creates it on the caller's thread; after that the engine's thread uses it,
// but for its output, which belongs to OutputWorkers.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/work_budget.h"
#include "engine/drafts/draft_length.h"
#include "engine/drafts/ngram.h"
#include "engine/prefix_cache.h"
#include "engine/prompt_images.h"
#include "engine/request.h"
#include "model/model.h"
#include "text/chat/output.h"
#include "text/grammar/grammar.h"

namespace gemma4 {

// Rows of one pass whose logits score tokens of prompts. A sequence has at most one such block of logits on its way.
constexpr int kScoredRowsMax = 16;

using Clock = std::chrono::steady_clock;

// Tells the work for a request to stop once none of its choices is wanted any more.
struct Unwanted {
  Unwanted(int choices, CancelFlag flag) : left(choices), cancelled(std::move(flag)) {}
  void drop() {
    if (--left == 0) *cancelled = true;
  }
  std::atomic<int> left;
  const CancelFlag cancelled;
};

// What the draw of the next token depends on, besides what never changes during an answer. It follows from the tokens
// so far; a copy follows drafts, and is dropped with those that are rejected. The engine thread's own.
struct DrawState {
  std::vector<std::pair<int32_t, int32_t>> counts;  // SamplingInput::counts
  int thought_tokens = 0;                           // so far, markers included
  bool thought_open = false;                        // the next token continues a thought
  enum class NextToken { kAny, kEndOfThought, kNoThought } next_token = NextToken::kAny;
  bool masked = false;  // it depends on the grammar. Where that is lazy, this is so within a call only
};

// A draft that the grammar allows, and the grammar after it; none after the end of a lazy one's call.
struct LookAhead {
  int32_t token = 0;
  std::optional<Grammar> grammar;
};

struct Sequence : DrawState {
  explicit Sequence(OutputParser parser) : parser(std::move(parser)) {}

  uint64_t id = 0;
  uint64_t group = 0;  // the same for all choices of one prompt; 0: it has but one
  int choice = 0;
  int priority = 0;
  uint64_t cache_salt = 0;  // pages are shared among sequences of the same salt only

  // The prompt, then the generated tokens. hashes[i] identifies the token at position i (engine/prefix_cache.h).
  std::vector<int32_t> ids;
  std::vector<TokenHash> hashes;
  std::vector<PromptImage> images;  // in order of position
  int prompt = 0;                   // tokens of the prompt
  int limit = 0;                    // tokens that ids may grow to
  int computed = 0;                 // positions [0, computed) are in the cache
  PageTable table;
  int slot = -1;  // its sequence number in the model; -1 while it waits

  // Sampling.
  SamplingParams sampling;
  std::vector<std::pair<int32_t, float>> bias;
  std::vector<std::pair<int32_t, float>> bias_early;  // `bias`, and nothing ends the answer; for `min_tokens` tokens
  int min_tokens = 0;
  std::vector<int32_t> stop_ids;
  bool ignore_eos = false;
  bool reuse_prefix = true;
  int logprobs = -1;
  int prompt_logprobs = -1;  // the scores of the prompt's tokens are wanted, and of so many others
  int scored = 0;            // tokens of the prompt whose scores are made
  bool score_only = false;   // no token is drawn

  // The budget of thoughts. The engine thread's own.
  int thinking_budget = -1;  // negative: none

  // Drafts. The engine thread's own.
  std::vector<int32_t> drafts;  // proposed to follow `ids`
  std::optional<NgramIndex> ngrams;
  AcceptRate accept_rate;

  Usage usage;
  Clock::time_point submitted, scheduled, first_token, last_token;
  bool started = false;  // was scheduled once

  // Its tokens at OutputWorkers: while jobs reach jobs_max, the sequence sits out.
  int jobs = 0, jobs_max = 16;
  uint64_t last_step = 0;              // that gave it a token
  std::shared_ptr<Unwanted> unwanted;  // of the request
  bool heavy_output = false;           // it has a grammar or log probabilities
  bool sits_out() const { return jobs >= (masked ? 1 : jobs_max); }

  // Output: the workers' own, while a job is theirs. The grammar's mask, and those of `lookahead`, are read where there
  // is none.
  OutputParser parser;
  std::optional<Grammar> grammar;
  bool lazy_grammar = false;                 // of calls alone: it begins at a <|tool_call>
  bool keep_grammar = true;                  // past its budget the answer fails; else a lazy grammar is given up
  bool in_call = false;                      // with a lazy grammar
  std::vector<LookAhead> lookahead;          // of the drafts, as far as their masks are made
  bool looks_ahead = true;                   // its masks take little work
  bool scores_sent = false;                  // of the prompt's first tokens
  std::vector<TokenLogprobs> logprobs_held;  // sent with the next event
  bool thinking = false;
  int thinking_tokens = 0;
  int tool_calls = 0;
  bool read_to_end = false;    // its text or its grammar has ended the answer: no more tokens are read
  int unread = 0;              // tokens that came after that
  DraftStats accepted_drafts;  // among the tokens read; its counts of rounds and drafts are unused
  Sink sink;
  std::shared_ptr<Warnings> warnings;  // of the request; may be null
  bool over = false;                   // its last event was sent

  // Tokens of the prompt are still to be scored: token i by the logits of row i - 1.
  bool scores() const { return prompt_logprobs >= 0 && scored < prompt; }
  bool prefilled() const { return computed >= prompt; }
  // Drafts that the next step may verify. A masked row needs its mask.
  int draft_count() const { return static_cast<int>(masked ? lookahead.size() : drafts.size()); }
  int32_t draft(int i) const { return masked ? lookahead[i].token : drafts[i]; }
  int remaining() const { return static_cast<int>(ids.size()) - computed; }
  // Rows that are not computed, and the vision tower's work for them.
  int64_t prompt_work() const {
    int64_t rows = remaining();
    for (const PromptImage& image : images) rows += image.end > computed ? image.tower_left : 0;
    return rows;
  }
  // Runs before, and is preempted after, `other`.
  bool before(const Sequence& other) const {
    return priority != other.priority ? priority > other.priority : id < other.id;
  }
};

}  // namespace gemma4
