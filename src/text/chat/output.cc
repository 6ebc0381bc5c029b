#include "text/chat/output.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/utf8.h"

namespace gemma4 {
namespace {

constexpr std::string_view kChannelName = "thought\n";

int32_t find_or_none(const Tokenizer& tokenizer, std::string_view name) { return tokenizer.find(name).value_or(-1); }

}  // namespace

OutputParser::OutputParser(const Tokenizer& tokenizer, OutputOptions options)
    : tokenizer_(tokenizer),
      options_(std::move(options)),
      channel_begin_(find_or_none(tokenizer, "<|channel>")),
      channel_end_(find_or_none(tokenizer, "<channel|>")),
      call_begin_(find_or_none(tokenizer, "<|tool_call>")),
      call_end_(find_or_none(tokenizer, "<tool_call|>")),
      quote_(find_or_none(tokenizer, "<|\"|>")),
      content_(tokenizer, options_.stops),
      thinking_(tokenizer) {}

std::vector<OutputEvent> OutputParser::push(int32_t id) {
  Events events;
  if (stopped()) return events;
  if (state_ == kInCall && (id == quote_ || !tokenizer_.is_control(id))) {
    push_call(id, events);
  } else if (tokenizer_.is_control(id)) {
    push_control(id, events);
  } else if (state_ == kInThinking) {
    think(thinking_.push(id), events);
  } else {
    say(content_.push(id), events);
  }
  return events;
}

std::vector<OutputEvent> OutputParser::finish(bool cut) {
  Events events;
  end_state(events, cut);
  return events;
}

// Any control token ends the current state; <|channel> and <|tool_call> also begin one.
void OutputParser::push_control(int32_t id, Events& events) {
  channel_closed_ = id == channel_end_;
  end_state(events, false);
  if (stopped()) return;
  if (id == channel_begin_) state_ = kInThinking;
  if (id == call_begin_) {
    state_ = kInCall;
    if (options_.stream_calls) live_.emplace(tokenizer_, options_.tools, CallParser::kLive);
  }
}

void OutputParser::end_state(Events& events, bool cut) {
  if (state_ == kInCall) {
    close_call(events, cut);
  } else if (state_ == kInThinking) {
    think(thinking_.finish(), events);
    // A thought that was closed by force may end within the channel's name.
    if (channel_closed_ && kChannelName.starts_with(head_)) head_.clear();
    if (!head_.empty()) events.push_back({OutputEvent::kThinking, std::exchange(head_, ""), ""});
    if (newline_held_ && !channel_closed_) events.push_back({OutputEvent::kThinking, "\n", ""});
    head_done_ = newline_held_ = false;
  } else {
    say(content_.finish(), events);
  }
  state_ = kInContent;
  channel_closed_ = false;
}

void OutputParser::say(std::string text, Events& events) {
  if (text.empty()) return;
  if (!left_out_.empty()) {
    const size_t same = std::ranges::mismatch(text, left_out_).in1 - text.begin();
    left_out_ = same == text.size() ? left_out_.substr(same) : "";
    text.erase(0, same);
    if (text.empty()) return;
  }
  events.push_back({OutputEvent::kContent, std::move(text), ""});
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

void OutputParser::push_call(int32_t id, Events& events) {
  if (!call_begun_) call_.push_back(id);
  if (!live_) return;
  if (live_->push(id)) {
    put_begun_call(*live_, events);
  } else if (call_begun_) {
    throw Error("the model's call of " + live_->name() + " cannot be read");
  } else {
    live_.reset();  // it is read at its end
  }
}

void OutputParser::stop_streaming_calls() {
  options_.stream_calls = false;
  if (!call_begun_) live_.reset();
}

// What `call` has read so far.
void OutputParser::put_begun_call(CallParser& call, Events& events) {
  if (!call_begun_ && call.named()) {
    events.push_back({OutputEvent::kCallBegin, call.name(), ""});
    call_begun_ = true;
    call_.clear();
  }
  std::string arguments = call.take();
  if (!call_begun_ || arguments.empty()) return;
  arguments_ += arguments;
  events.push_back({OutputEvent::kCallArguments, "", std::move(arguments)});
}

void OutputParser::close_call(Events& events, bool cut) {
  std::optional<CallParser> call = std::exchange(live_, std::nullopt);
  bool whole = false;
  if (call_begun_) {
    whole = call->finish();
    if (!whole && !cut) throw Error("the model's call of " + call->name() + " ends in the middle");
  } else {
    call.emplace(tokenizer_, options_.tools, CallParser::kWhole);
    for (const int32_t id : call_) call->push(id);
    whole = call->finish();
    if (!whole) call.emplace(tokenizer_, options_.tools, CallParser::kBeginning);
    for (size_t i = 0; !whole && i < call_.size() && call->push(call_[i]); ++i) {
    }
    if (!whole && (!cut || call->failed())) return put_call_text(events);
  }
  if (whole || !call->failed()) put_begun_call(*call, events);
  if (call_begun_) {
    ++tool_calls_;
    events.push_back({OutputEvent::kToolCall, call->name(), std::exchange(arguments_, ""), !whole});
  }
  call_.clear();
  call_begun_ = false;
}

// A call that cannot be read.
void OutputParser::put_call_text(Events& events) {
  std::string text;
  for (const int32_t id : std::exchange(call_, {})) {
    if (id == quote_) {
      text += '"';
    } else {
      text += tokenizer_.piece(id);
    }
  }
  if (!text.empty()) events.push_back({OutputEvent::kContent, utf8_repair(text), ""});
}

bool parse_tool_call(const Tokenizer& tokenizer, std::span<const int32_t> ids, std::string& name,
                     std::string& arguments, std::shared_ptr<const OfferedTools> tools) {
  CallParser call(tokenizer, std::move(tools), CallParser::kWhole);
  for (const int32_t id : ids) call.push(id);
  if (!call.finish()) return false;
  name = call.name();
  arguments = call.take();
  return true;
}

}  // namespace gemma4
