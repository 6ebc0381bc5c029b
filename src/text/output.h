// OutputParser: what the model said. Splits a model's tokens into content, thinking and tool calls by the ids of the
// control tokens, never by their spelling, so no text the model writes can be taken for a marker. Nothing is lost: a
// tool call that does not parse comes back as content, spelled out. Chunking cannot matter: ids arrive one by one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "text/stream.h"
#include "text/tokenizer.h"

namespace gemma4 {

struct OutputEvent {
  enum Kind { kContent, kThinking, kToolCall } kind = kContent;
  std::string text;       // kContent, kThinking: the next part. kToolCall: the name
  std::string arguments;  // kToolCall: a JSON object as text
};

class OutputParser {
 public:
  // Stop strings are looked for in the content alone.
  explicit OutputParser(const Tokenizer& tokenizer, std::vector<std::string> stops = {});
  // Events that `id` completes. End tokens may be pushed and show nothing.
  std::vector<OutputEvent> push(int32_t id);
  std::vector<OutputEvent> finish();  // the rest, also of a call that never ended
  bool stopped() const;               // a stop string came
  const std::string& stop() const { return content_.stop(); }  // which
  int tool_calls() const { return tool_calls_; }

 private:
  enum Mode { kInContent, kInThinking, kInCall };
  void enter(Mode mode, std::vector<OutputEvent>& events);
  void close_call(bool complete, std::vector<OutputEvent>& events);
  void emit(OutputEvent::Kind kind, std::string text, std::vector<OutputEvent>& events);

  Tokenizer tokenizer_;
  int32_t channel_begin_, channel_end_, call_begin_, call_end_, quote_;
  Mode mode_ = kInContent;
  TokenStream content_, thinking_;
  std::string thinking_head_;  // up to the end of the channel's name
  bool head_done_ = false;
  std::vector<int32_t> call_;  // ids between <|tool_call> and <tool_call|>
  int tool_calls_ = 0;
};

// The ids between <|tool_call> and <tool_call|>: call:NAME{key:value,...}. Strings stand between two quote tokens.
// False where they are no such call.
bool parse_tool_call(const Tokenizer& tokenizer, std::span<const int32_t> ids, std::string& name,
                     std::string& arguments);

}  // namespace gemma4
