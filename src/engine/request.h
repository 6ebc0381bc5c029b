// Request and Event: what a caller asks of the Engine, and what it hears back. Every front end (the command line, the
// HTTP server, the evaluation) speaks these and nothing lower.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/sampling.h"
#include "base/check.h"
#include "text/chat/chat.h"

namespace gemma4 {

// The engine has as many waiting requests as it takes (HTTP 429), or is stopping (HTTP 503): not the request's fault.
struct BusyError : Error {
  using Error::Error;
};
struct StoppingError : Error {
  using Error::Error;
};

// How a request wants its tokens chosen. Unset fields come from the checkpoint's generation_config.json.
struct RequestSampling : SamplingAdjustments {
  std::optional<float> temperature;
  std::optional<int> top_k;
  std::optional<float> top_p;
  std::optional<uint64_t> seed;                       // unset: drawn at random and reported in Usage
  std::vector<std::pair<int32_t, float>> logit_bias;  // (id, added to its logit)
};

// What shape the answer must have; enforced by masking tokens.
struct ResponseFormat {
  enum Type { kFree, kJson, kSchema, kToolCall } type = kFree;
  std::string schema;          // kSchema: a JSON schema, as JSON text
  std::string tool_name;       // kToolCall: this tool of Request::tools; empty: any of them, at least one call
  bool parallel_tools = true;  // kToolCall: more than one call may come
};

struct Request {
  // The prompt is one of: token ids, raw text, a conversation. The first that is there, in this order, is used.
  std::vector<int32_t> ids;        // as they are; image tokens among them are refused
  std::optional<std::string> raw;  // control tokens spelled in it are read as such; BOS is added where missing
  std::vector<Message> messages;  // with `tools` and `chat`, rendered as the published template does (text/chat/chat.h)
  std::string tools;              // JSON array of {"type": "function", "function": {...}} as text, or empty
  ChatOptions chat;

  // File bytes (JPEG, PNG, WebP) of the images, in the order of the image parts of `messages` or of the <|image|> in
  // `raw`. As many as there are places for them.
  std::vector<std::string> images;
  int image_budget = 0;  // soft tokens for each image: 70, 140, 280, 560 or 1120; 0: the checkpoint's default

  RequestSampling sampling;
  ResponseFormat format;
  int max_new_tokens = 0;         // 0: until the context is full
  std::vector<std::string> stop;  // the answer ends before the first of these
  bool ignore_eos = false;        // benchmarks: never stop at an end token
  int logprobs = -1;              // -1: none; n >= 0: of every token, and of the n likeliest (at most kLogprobsMax)
  int n = 1;                      // answers ("choices") to this prompt; choice i is drawn with seed + i
  int priority = 0;               // larger goes first and is preempted last
  bool reuse_prefix = true;       // false: compute the whole prompt, whatever the cache holds
};
constexpr int kLogprobsMax = 20;
constexpr int kStopsMax = 16;
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
  kToolCalls,  // the model waits for the result of its calls
  kCancelled,
};
const char* finish_name(Finish finish);  // "stop", "length", "tool_calls", "cancelled"

struct Usage {
  int prompt_tokens = 0;
  int cached_tokens = 0;      // of the prompt: not computed, found in the prefix cache
  int image_tokens = 0;       // of the prompt: soft tokens
  int generated_tokens = 0;   // without the end token
  int thinking_tokens = 0;    // of those: inside the thought channel
  int preemptions = 0;        // times this request gave its memory to another and was computed again
  uint64_t seed = 0;          // that was used
  double prepare_ms = 0;      // decoding images, rendering and tokenizing (on the caller's thread)
  double queue_ms = 0;        // from submit to the first scheduled row
  double image_ms = 0;        // vision tower
  double prefill_ms = 0;      // from the first scheduled row to the first token, without image_ms
  double first_token_ms = 0;  // from submit to the first token
  int decode_steps = 0;       // forward passes of decode_ms
  double decode_ms = 0;       // from the first token to the last
};

// One thing that happened to one request. kDone or kError comes exactly once and last.
struct Event {
  enum Type {
    kText,      // text: a piece of the answer, whole UTF-8 characters, never a control token
    kThinking,  // text: a piece of the thought channel
    kToolCall,  // tool_call: one finished call
    kDone,      // finish, stop, usage
    kError,     // text: one sentence; device: the engine is dead and the process should end with kExitDevice
  };
  Type type = kText;
  int choice = 0;  // which of Request::n
  std::string text;
  ToolCall tool_call;                   // arguments: a JSON object as text; id is empty: the front end makes one
  int tool_index = 0;                   // 0, 1, ... within this answer
  std::vector<TokenLogprobs> logprobs;  // kText, kThinking, kToolCall, kDone: of the tokens since the last event
  Finish finish = Finish::kStop;
  std::string stop;  // kDone: the stop string that ended it, where one did
  Usage usage;       // kDone
  bool device = false;
};

// Called on the engine's thread, one call at a time for one request: it must neither block nor throw. Use EventQueue
// (engine/event_queue.h) to read events from another thread.
using Sink = std::function<void(const Event&)>;

}  // namespace gemma4
