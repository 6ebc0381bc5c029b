// OutputParser: what the model said. Splits a model's tokens into content, thinking and tool calls by the ids of the
// control tokens, never by their spelling, so no text the model writes can be taken for a marker. Nothing is lost: a
// tool call that does not parse comes back as content, spelled out. Chunking cannot matter: ids arrive one by one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "text/tokenizer/stream.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

struct OutputEvent {
  enum Kind { kContent, kThinking, kToolCall } kind = kContent;
  std::string text;       // kContent, kThinking: the next part, never empty. kToolCall: the name
  std::string arguments;  // kToolCall: a JSON object as text

  bool operator==(const OutputEvent&) const = default;
};

class OutputParser {
 public:
  // Stop strings are looked for in the content alone.
  explicit OutputParser(const Tokenizer& tokenizer, std::vector<std::string> stops = {});
  // Events that `id` completes. End tokens may be pushed and show nothing.
  std::vector<OutputEvent> push(int32_t id);
  std::vector<OutputEvent> finish();                   // the rest, also of a call that never ended
  bool stopped() const { return content_.stopped(); }  // a stop string came; nothing more will be shown
  const std::string& stop() const { return content_.stop(); }
  int tool_calls() const { return tool_calls_; }  // how many so far
  bool thinking() const { return mode_ == kInThinking; }

 private:
  enum Mode { kInContent, kInThinking, kInCall };
  using Events = std::vector<OutputEvent>;
  void push_control(int32_t id, Events& events);
  void end_mode(Events& events);  // ends the current mode; content follows
  void think(std::string_view text, Events& events);
  void close_call(Events& events);

  Tokenizer tokenizer_;
  int32_t channel_begin_, channel_end_, call_begin_, call_end_, quote_;  // -1 where the vocabulary lacks it
  Mode mode_ = kInContent;
  TokenStream content_, thinking_;
  std::string head_;  // of a thought: what may still become the channel's name
  bool head_done_ = false;
  bool newline_held_ = false;  // the newline before <channel|> is no part of the thought
  bool channel_closed_ = false;
  std::vector<int32_t> call_;  // ids since <|tool_call>
  bool call_closed_ = false;
  int tool_calls_ = 0;
};

// `ids` are those between <|tool_call> and <tool_call|>: call:NAME{key:value,...}. Strings stand between two <|"|>
// tokens, so they may hold any text. Lenient where the meaning is plain (spaces, JSON's own quotes, a bare word as a
// string); false where it is not.
bool parse_tool_call(const Tokenizer& tokenizer, std::span<const int32_t> ids, std::string& name,
                     std::string& arguments);

}  // namespace gemma4
