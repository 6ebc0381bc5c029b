// OutputParser: splits a model's tokens into content, thinking and tool calls. It goes by the ids of the control
// tokens, never by their names, so no text that the model writes can be taken for a marker. A tool call that cannot be
// read is returned as content, without its markers. Ids arrive one by one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "text/chat/call_parser.h"
#include "text/chat/offered_tools.h"
#include "text/tokenizer/detokenizer.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

struct OutputEvent {
  // A call is a kCallBegin, its arguments in pieces, and a kToolCall with all of it.
  enum Type { kContent, kThinking, kCallBegin, kCallArguments, kToolCall } type = kContent;
  std::string text;       // kContent, kThinking: the next text, never empty. kCallBegin, kToolCall: the name
  std::string arguments;  // kCallArguments: the next JSON, never empty. kToolCall: all pieces joined
  bool cut = false;       // kToolCall: it ends in the middle, and so does its JSON

  bool operator==(const OutputEvent&) const = default;
};

struct OutputOptions {
  std::vector<std::string> stops;             // searched for in the content only
  std::shared_ptr<const OfferedTools> tools;  // those that may be called; null: any
  bool stream_calls = false;  // a grammar makes calls right, so they are read while they are written; else at their end
};

class OutputParser {
 public:
  OutputParser(const Tokenizer& tokenizer, OutputOptions options);
  explicit OutputParser(const Tokenizer& tokenizer, std::vector<std::string> stops = {})
      : OutputParser(tokenizer, OutputOptions{.stops = std::move(stops)}) {}

  // Leaves this out at the beginning of the content, as far as the content begins like it.
  void leave_out(std::string beginning) { left_out_ = std::move(beginning); }
  // The events that `id` completes. End tokens may be pushed; they give no text. Throws Error where a call that was
  // begun cannot be read on.
  std::vector<OutputEvent> push(int32_t id);
  // The rest, also that of a call without an end. `cut`: a limit ended the output, not the model.
  std::vector<OutputEvent> finish(bool cut = false);
  bool stopped() const { return content_.stopped(); }  // a stop string came; nothing more will be shown
  const std::string& stop() const { return content_.stop(); }
  int tool_calls() const { return tool_calls_; }  // how many so far
  bool thinking() const { return state_ == kInThinking; }
  void stop_streaming_calls();  // of those that are not begun: there is no grammar any more

 private:
  enum State { kInContent, kInThinking, kInCall };
  using Events = std::vector<OutputEvent>;
  void push_control(int32_t id, Events& events);
  void end_state(Events& events, bool cut);  // ends the current state; content follows
  void think(std::string_view text, Events& events);
  void say(std::string text, Events& events);
  void push_call(int32_t id, Events& events);
  void close_call(Events& events, bool cut);
  void put_begun_call(CallParser& call, Events& events);
  void put_call_text(Events& events);

  Tokenizer tokenizer_;
  OutputOptions options_;
  int32_t channel_begin_, channel_end_, call_begin_, call_end_, quote_;  // -1 where the vocabulary lacks it
  State state_ = kInContent;
  Detokenizer content_, thinking_;
  std::string left_out_;
  std::string head_;  // the start of a thought while it may still be the channel's name
  bool head_done_ = false;
  bool newline_held_ = false;  // the newline before <channel|> does not belong to the thought
  bool channel_closed_ = false;
  std::vector<int32_t> call_;       // ids since <|tool_call>, while none of it is shown
  std::optional<CallParser> live_;  // reads them while they come
  bool call_begun_ = false;         // a kCallBegin went out
  std::string arguments_;           // that went out
  int tool_calls_ = 0;
};

// Reads a whole call; `ids` are those between <|tool_call> and <tool_call|>. `tools`: those that may be called; null:
// any. False where it cannot be read.
bool parse_tool_call(const Tokenizer& tokenizer, std::span<const int32_t> ids, std::string& name,
                     std::string& arguments, std::shared_ptr<const OfferedTools> tools = nullptr);

}  // namespace gemma4
