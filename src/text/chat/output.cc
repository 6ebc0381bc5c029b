#include "text/chat/output.h"

#include <utility>

namespace gemma4 {
namespace {

constexpr std::string_view kChannelName = "thought\n";

int32_t find_or_none(const Tokenizer& tokenizer, std::string_view name) { return tokenizer.find(name).value_or(-1); }

}  // namespace

OutputParser::OutputParser(const Tokenizer& tokenizer, std::vector<std::string> stops)
    : tokenizer_(tokenizer),
      channel_begin_(find_or_none(tokenizer, "<|channel>")),
      channel_end_(find_or_none(tokenizer, "<channel|>")),
      call_begin_(find_or_none(tokenizer, "<|tool_call>")),
      call_end_(find_or_none(tokenizer, "<tool_call|>")),
      quote_(find_or_none(tokenizer, "<|\"|>")),
      content_(tokenizer, std::move(stops)),
      thinking_(tokenizer) {}

std::vector<OutputEvent> OutputParser::push(int32_t id) {
  Events events;
  if (stopped()) return events;
  if (state_ == kInCall && (id == quote_ || !tokenizer_.is_control(id))) {
    call_.push_back(id);
  } else if (tokenizer_.is_control(id)) {
    push_control(id, events);
  } else if (state_ == kInThinking) {
    think(thinking_.push(id), events);
  } else if (std::string text = content_.push(id); !text.empty()) {
    events.push_back({OutputEvent::kContent, std::move(text), ""});
  }
  return events;
}

std::vector<OutputEvent> OutputParser::finish() {
  Events events;
  end_state(events);
  return events;
}

// Any control token ends the current state; <|channel> and <|tool_call> also begin one.
void OutputParser::push_control(int32_t id, Events& events) {
  channel_closed_ = id == channel_end_;
  call_closed_ = id == call_end_;
  end_state(events);
  if (stopped()) return;
  if (id == channel_begin_) state_ = kInThinking;
  if (id == call_begin_) state_ = kInCall;
}

void OutputParser::end_state(Events& events) {
  if (state_ == kInCall) {
    close_call(events);
  } else if (state_ == kInThinking) {
    think(thinking_.finish(), events);
    if (!head_.empty()) events.push_back({OutputEvent::kThinking, std::exchange(head_, ""), ""});
    if (newline_held_ && !channel_closed_) events.push_back({OutputEvent::kThinking, "\n", ""});
    head_done_ = newline_held_ = false;
  } else if (std::string text = content_.finish(); !text.empty()) {
    events.push_back({OutputEvent::kContent, std::move(text), ""});
  }
  state_ = kInContent;
  channel_closed_ = call_closed_ = false;
}

void OutputParser::think(std::string_view next, Events& events) {
  std::string text(next);
  if (!head_done_) {
    head_ += text;
    if (kChannelName.starts_with(head_) && head_ != kChannelName) return;  // the name may still be incomplete
    head_done_ = true;
    text = std::exchange(head_, "");
    if (text.starts_with(kChannelName)) text.erase(0, kChannelName.size());
  }
  if (text.empty()) return;
  if (std::exchange(newline_held_, false)) text.insert(0, "\n");
  if (text.ends_with('\n')) {
    text.pop_back();
    newline_held_ = true;
  }
  if (!text.empty()) events.push_back({OutputEvent::kThinking, std::move(text), ""});
}

void OutputParser::close_call(Events& events) {
  OutputEvent call{OutputEvent::kToolCall, "", ""};
  if (parse_tool_call(tokenizer_, call_, call.text, call.arguments)) {
    ++tool_calls_;
    events.push_back(std::move(call));
  } else {
    std::string text = "<|tool_call>" + tokenizer_.decode(call_, false);
    if (call_closed_) text += "<tool_call|>";
    events.push_back({OutputEvent::kContent, std::move(text), ""});
  }
  call_.clear();
}

}  // namespace gemma4
