// OutputParser: splits a model's tokens into content, thinking and tool calls. It goes by the ids of the control
// tokens, never by their names, so no text that the model writes can be taken for a marker. Nothing is lost: a tool
// call that does not parse is returned as content, markers included. Ids arrive one by one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "text/tokenizer/detokenizer.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

struct OutputEvent {
  enum Type { kContent, kThinking, kToolCall } type = kContent;
  std::string text;       // kContent, kThinking: the next text, never empty. kToolCall: the name
  std::string arguments;  // kToolCall: a JSON object as text

  bool operator==(const OutputEvent&) const = default;
};

class OutputParser {
 public:
  // Stop strings are searched for in the content only.
  explicit OutputParser(const Tokenizer& tokenizer, std::vector<std::string> stops = {});
  // The events that `id` completes. End tokens may be pushed; they give no text.
  std::vector<OutputEvent> push(int32_t id);
  std::vector<OutputEvent> finish();                   // the rest, also that of a call without an end
  bool stopped() const { return content_.stopped(); }  // a stop string came; nothing more will be shown
  const std::string& stop() const { return content_.stop(); }
  int tool_calls() const { return tool_calls_; }  // how many so far
  bool thinking() const { return state_ == kInThinking; }

 private:
  enum State { kInContent, kInThinking, kInCall };
  using Events = std::vector<OutputEvent>;
  void push_control(int32_t id, Events& events);
  void end_state(Events& events);  // ends the current state; content follows
  void think(std::string_view text, Events& events);
  void close_call(Events& events);

  Tokenizer tokenizer_;
  int32_t channel_begin_, channel_end_, call_begin_, call_end_, quote_;  // -1 where the vocabulary lacks it
  State state_ = kInContent;
  Detokenizer content_, thinking_;
  std::string head_;  // the start of a thought while it may still be the channel's name
  bool head_done_ = false;
  bool newline_held_ = false;  // the newline before <channel|> does not belong to the thought
  bool channel_closed_ = false;
  std::vector<int32_t> call_;  // ids since <|tool_call>
  bool call_closed_ = false;
  int tool_calls_ = 0;
};

// `ids` are those between <|tool_call> and <tool_call|>: call:NAME{key:value,...}. Strings stand between two <|"|>
// tokens, so they may contain any text. Deviations with a clear meaning are accepted: spaces, JSON's quotes, a bare
// word as a string. Returns false for any other.
bool parse_tool_call(const Tokenizer& tokenizer, std::span<const int32_t> ids, std::string& name,
                     std::string& arguments);

}  // namespace gemma4
