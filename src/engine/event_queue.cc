#include "engine/event_queue.h"

#include <algorithm>

namespace gemma4 {
namespace {

size_t event_bytes(const Event& event) {
  size_t bytes = event.text.size() + event.tool_call.name.size() + event.tool_call.arguments.size();
  for (const TokenLogprobs& token : event.logprobs) bytes += 32 * (1 + token.top.size());
  return bytes;
}

bool is_text(const Event& event) { return event.kind == Event::kText || event.kind == Event::kThinking; }

}  // namespace

bool EventQueue::push(const Event& event) {
  const std::lock_guard lock(mutex_);
  if (closed_) return false;
  const size_t bytes = event_bytes(event);
  const bool last = event.kind == Event::kDone || event.kind == Event::kError;
  if (bytes_ + bytes > limit_ && !last) {
    Event error;
    error.kind = Event::kError;
    error.text = "the answer was not read for so long that it was given up";
    events_.push_back(std::move(error));
    closed_ = true;
  } else if (!events_.empty() && is_text(event) && events_.back().kind == event.kind) {
    Event& back = events_.back();
    back.text += event.text;
    back.logprobs.insert(back.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
  } else {
    events_.push_back(event);
  }
  bytes_ += bytes;
  closed_ = closed_ || last;
  ready_.notify_all();
  return !closed_ || last;
}

void EventQueue::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  events_.clear();
}

std::optional<Event> EventQueue::pop(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  if (!ready_.wait_for(lock, timeout, [this] { return !events_.empty(); })) return std::nullopt;
  Event event = std::move(events_.front());
  events_.pop_front();
  bytes_ -= std::min(bytes_, event_bytes(event));
  return event;
}

Event EventQueue::pop() {
  while (true) {
    if (auto event = pop(std::chrono::seconds(1))) return *std::move(event);
  }
}

}  // namespace gemma4
