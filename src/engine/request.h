// Request and Event: the Engine's input and output. All front ends (the command line, the HTTP server, the evaluation)
// use these types.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/sampling.h"
#include "base/check.h"
#include "base/mutex.h"
#include "base/warnings.h"
#include "base/work_budget.h"
#include "text/chat/chat.h"

namespace gemma4 {

// The engine's queue is full (HTTP 429), or it is stopping (HTTP 503). The request itself may be correct.
struct BusyError : Error {
  using Error::Error;
};
struct StoppingError : Error {
  using Error::Error;
};

// The prompt does not fit. The APIs say it in the words that their clients look for.
struct ContextError : Error {
  ContextError(int prompt_tokens, int tools, int max_seq_len);
  int tokens, tool_tokens, limit;  // of the prompt; of those for the tools; of the context
};

// How a request wants its tokens chosen. Unset fields come from the checkpoint's generation_config.json.
struct RequestSampling : SamplingAdjustments {
  std::optional<float> temperature;
  std::optional<int> top_k;
  std::optional<float> top_p;
  std::optional<uint64_t> seed;                       // unset: drawn at random and reported in Usage
  std::vector<std::pair<int32_t, float>> logit_bias;  // (id, added to its logit)
};

// The required format of the answer, enforced by masking tokens. Where the request has tools, a call may come in place
// of any format, and calls are always right: one of the tools, the call's syntax, and arguments that fit.
struct ResponseFormat {
  enum Type { kFree, kJson, kSchema, kToolCall, kRegex, kChoice, kGrammar } type = kFree;
  std::string schema;   // kSchema: a JSON schema, as JSON text
  bool strict = false;  // kSchema: refused where a keyword cannot be enforced
  std::string text;     // kRegex: an expression that all of the answer matches. kGrammar: GBNF or Lark's syntax
  std::vector<std::string> choices;  // kChoice: the answer is one of them
  std::string tool_name;             // kToolCall: this tool of Request::tools; empty: any of them, at least one call
  bool parallel_tools = true;        // all but kFree: more than one call may come
};

struct Request {
  // The prompt: token ids, raw text or a conversation. The first of these that is set is used.
  std::vector<int32_t> ids;        // unchanged; may not contain image tokens
  std::optional<std::string> raw;  // may contain control tokens; BOS is added if it is missing
  std::vector<Message> messages;  // with `tools` and `chat`, rendered as the published template does (text/chat/chat.h)
  std::string tools;              // JSON array of {"type": "function", "function": {...}} as text, or empty
  ChatOptions chat;

  // File bytes (image/decode.h says of which formats) of the images, in the order of the image parts of `messages` or
  // of the <|image|> in `raw`; the numbers must agree.
  std::vector<std::string> images;
  int image_budget = 0;  // soft tokens for each image: 70, 140, 280, 560 or 1120; 0: the checkpoint's default

  RequestSampling sampling;
  ResponseFormat format;
  // Set where the masks of a schema (of the answer, or of a tool's arguments) do not keep all of it, so that an answer
  // may break it; may be null.
  std::shared_ptr<std::atomic<bool>> unenforced;
  int max_new_tokens = 0;  // 0: until the context is full
  // Tokens that thoughts may take, markers included; then they are closed and the answer begins. 0: the thought is
  // closed at once; negative: EngineOptions::thinking_budget. thinking_share: of the tokens that the answer may have,
  // at most.
  int thinking_budget = -1;
  double thinking_share = 1;
  std::vector<std::string> stop;  // the answer ends before the first occurrence of one of these
  bool ignore_eos = false;        // benchmarks: never stop at an end token
  std::vector<int32_t> stop_ids;  // tokens that end the answer, besides the end tokens
  int min_new_tokens = 0;         // no end token, and none of stop_ids, is drawn before so many
  int logprobs = -1;              // -1: none; n >= 0: of every token and the n likeliest (at most kLogprobsMax)
  // Of every token of the prompt, too, as `logprobs` has it: kPromptLogprobs events come before all others of choice 0.
  // The prompt is computed anew, in smaller chunks. Not with images.
  int prompt_logprobs = -1;
  bool score_only = false;  // no token is drawn: the answer ends with the prompt
  int n = 1;                // answers ("choices") to this prompt; choice i is drawn with seed + i
  int priority = 0;         // larger ones are scheduled first and preempted last
  // Cached pages and pictures are shared among requests of the same salt only. Secret: it is hashed, and not kept.
  std::string cache_salt;
  bool reuse_prefix = true;            // false: do not use the prefix cache; choices still share their prompt
  std::shared_ptr<Warnings> warnings;  // where preparation and output say what was not kept; may be null
};

// Ends the preparation of a request from another thread.
class Cancellation {
 public:
  void cancel() EXCLUDES(mutex_) {
    const MutexLock lock(mutex_);
    cancelled_ = true;
    for (const CancelFlag& flag : flags_) *flag = true;
  }
  void add(const CancelFlag& flag) EXCLUDES(mutex_) {  // is set by cancel(), too
    const MutexLock lock(mutex_);
    if (cancelled_) *flag = true;
    flags_.push_back(flag);
  }
  bool cancelled() const { return cancelled_; }
  void check() const {
    if (cancelled_) throw CancelledError("the request was cancelled");
  }

 private:
  std::atomic<bool> cancelled_ = false;
  Mutex mutex_;
  std::vector<CancelFlag> flags_ GUARDED_BY(mutex_);
};

// What the caller of Engine::submit() has to do with the preparation.
struct Preparation {
  std::shared_ptr<Cancellation> cancellation;  // null: it cannot be cancelled
  // Calls the function that it gets, which waits for memory that other requests hold. A caller that holds something of
  // which there is little gives it back meanwhile.
  std::function<void(const std::function<void()>& wait)> pause;

  // Lets another request go first, if it is its time. May wait, and throw CancelledError. Called where little memory is
  // held that is not bounded: the turns also bound that of all preparations.
  std::function<void()> make_way;

  void check() const {  // throws CancelledError
    if (cancellation) cancellation->check();
  }
  void check_and_make_way() const {
    check();
    if (make_way) make_way();
  }
};

constexpr int kLogprobsMax = 20;
constexpr int kStopsMax = 16;
constexpr size_t kStopBytesMax = 16384;  // of all; each choice has a copy of its own
constexpr int kStopIdsMax = 64;
constexpr int kChoicesMax = 32;

struct TokenLogprob {
  int32_t id = 0;
  std::string bytes;  // of the token alone; may be part of a character
  float logprob = 0;  // natural log, of softmax over all tokens at temperature 1, before penalties and masks
};

struct TokenLogprobs {
  TokenLogprob token;
  std::vector<TokenLogprob> top;  // descending, Request::logprobs of them
};

enum class Finish {
  kStop,       // an end token or a stop string
  kLength,     // max_new_tokens or the context is used up
  kToolCalls,  // the model waits for the results of its tool calls
  kCancelled,
};
const char* finish_name(Finish finish);  // "stop", "length", "tool_calls", "cancelled"

// What came of drafts (engine/drafts/draft_source.h).
struct DraftStats {
  bool wanted = false;                         // there is a drafter; else all of this is 0
  uint64_t rounds = 0;                         // steps that verified a draft or more of a sequence
  uint64_t drafted = 0;                        // drafts verified
  uint64_t accepted = 0;                       // drafts that became part of the answer
  std::vector<uint64_t> accepted_by_position;  // of those: the first, the second, ... of its round

  void add_accepted(int count) {  // the first so many of a round
    if (accepted_by_position.size() < static_cast<size_t>(count)) accepted_by_position.resize(count);
    for (int i = 0; i < count; ++i) ++accepted_by_position[i];
    accepted += count;
  }
};

struct Usage {
  int prompt_tokens = 0;
  int cached_tokens = 0;      // of the prompt: not computed, but shared from the prefix cache or another choice
  int image_tokens = 0;       // of the prompt: soft tokens
  int generated_tokens = 0;   // without the end token
  int thinking_tokens = 0;    // of those: inside the thought channel
  int preemptions = 0;        // times its memory was given to another sequence and it was computed again
  uint64_t seed = 0;          // as used
  double prepare_ms = 0;      // decoding images, rendering and tokenizing (on the caller's thread)
  double queue_ms = 0;        // from submit to the first scheduled row
  double image_ms = 0;        // vision tower
  double prefill_ms = 0;      // from the first scheduled row to the first token, without image_ms
  double first_token_ms = 0;  // from submit to the first token
  int decode_tokens = 0;      // drawn in decode_ms, an end token included
  double decode_ms = 0;       // from the first token to the last
  DraftStats drafts;
};

// An event of one choice. The last event, and no other, is kDone or kError.
struct Event {
  enum Type {
    kPromptLogprobs,  // logprobs: of the prompt's next tokens. The first token has nothing before it: its value is NaN
    kText,            // text: a piece of the answer, whole UTF-8 characters, never a control token
    kThinking,        // text: a piece of the thought channel
    // A call is one kToolCallBegin, its arguments in pieces, and a kToolCall with all of it.
    kToolCallBegin,      // tool_call: the name
    kToolCallArguments,  // text: the next piece of the arguments' JSON
    kToolCall,           // tool_call: the whole; cut: a limit ended it, and its JSON ends in the middle
    kDone,               // finish, stop, usage
    kError,  // text: one sentence; budget: the request asks for too much work; device: the engine is dead and the
             // process should end with kExitDevice
  };
  Type type = kText;
  int choice = 0;  // which of Request::n
  std::string text;
  ToolCall tool_call;  // arguments: a JSON object as text; id is empty: the front end makes one
  int tool_index = 0;  // kToolCallBegin, kToolCallArguments, kToolCall: 0, 1, ... within this answer
  bool cut = false;
  std::vector<TokenLogprobs> logprobs;  // of the tokens since the last event; of kError: none
  Finish finish = Finish::kStop;
  std::string stop;                     // kDone: the stop string that ended it, if any
  Usage usage;                          // kDone
  bool device = false, budget = false;  // kError
};

// Called on a worker's thread, one call at a time for each request. It must not block or throw. EventQueue
// (engine/event_queue.h) passes events to another thread.
using Sink = std::function<void(const Event&)>;

}  // namespace gemma4
