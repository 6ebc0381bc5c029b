// CompletionRequest: what one HTTP request asks of the engine, and how its API writes the answer. The parser of each
// API (openai.h, anthropic.h) makes one; server/endpoints/generate.cc runs all of them alike.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/warnings.h"
#include "engine/request.h"
#include "server/json.h"

namespace gemma4 {

class ResponseStore;

// The server's settings that request parsers need.
struct ApiContext {
  std::vector<std::string> models;  // names that requests may use; the first is the one we report
  bool any_model = false;           // every other name will do, too
  // The image behind an http(s) URL (fetch.h), or ApiError; `path` is the parameter that held the URL.
  std::function<std::string(const std::string& url, const std::string& path)> fetch;
  int image_budget_max = 0;
  int max_seq_len = 0;
  int64_t started = 0;                 // Unix time, seconds
  std::shared_ptr<Warnings> warnings;  // of this request; may be null
  std::function<std::string(const std::vector<int32_t>& ids)> decode;  // token ids to text
  std::string client;                  // its API key, or "": whose stored responses it may name
  ResponseStore* responses = nullptr;  // null: none are stored
};

// One finished answer.
struct Choice {
  std::string text, thinking;
  std::vector<ToolCall> tool_calls;     // with ids
  bool cut_call = false;                // the last of them ends in the middle, and so does its JSON
  std::vector<TokenLogprobs> logprobs;  // of the answer's tokens, thinking excluded
  std::vector<TokenLogprobs> prompt_logprobs;
  Finish finish = Finish::kStop;
  std::string stop;
  Usage usage;
};

struct ResponseSerializer {
  std::function<std::string(const std::vector<Choice>&)> whole;  // the body of an answer that is not streamed

  // Pieces of a stream, as server-sent events.
  std::function<std::string()> begin;
  std::function<std::string(int index, const Event& event)> piece;  // all kinds but kError; tool calls have ids
  std::function<std::string()> end;                                 // every choice is done
  std::function<std::string(const ApiError&)> error;                // in place of `end`
  std::string content_type = "text/event-stream";
  std::string ping = ": still working\n\n";                         // where nothing else was sent for long
};

struct CompletionRequest {
  std::vector<Request> requests;  // one for each prompt, with Request::n choices each
  int per_prompt = 1;  // Request::n of each
  bool stream = false;
  bool one_tool_call = false;  // parallel calls are not wanted: the answer ends with the first
  ResponseSerializer serializer;
};

// A request without a model means the one that is served. Throws ApiError 404.
void check_model(Fields& body, const ApiContext& context);

// Lists the warnings as "warnings", where there are any.
void add_warnings(Json& json, const std::shared_ptr<Warnings>& warnings);

// A random id: prefix + 24 characters.
std::string make_id(const std::string& prefix);
int64_t unix_time();

// A server-sent event; `name` may be empty.
std::string sse(const Json& data, const std::string& name = "");

Usage total_usage(const std::vector<Choice>& choices, int per_prompt);

// How fast it went, beside the usage of each answer: "timings", as the page shows it.
Json timings(const Usage& usage);

}  // namespace gemma4
