#include "engine/event_queue.h"

#include <algorithm>

namespace gemma4 {
namespace {

size_t event_bytes(const Event& event) {
  size_t bytes = event.text.size() + event.tool_call.name.size() + event.tool_call.arguments.size();
  for (const TokenLogprobs& token : event.logprobs) bytes += 32 * (1 + token.top.size());
  return bytes;
}

bool is_text(const Event& event) {
  return event.type == Event::kText || event.type == Event::kThinking || event.type == Event::kToolCallArguments;
}

}  // namespace

bool EventQueue::push(const Event& event, int index) {
  const MutexLock lock(mutex_);
  if (static_cast<int>(choices_.size()) <= index) choices_.resize(index + 1);
  Choice& choice = choices_[index];
  if (closed_ || choice.ended) return false;
  const size_t bytes = event_bytes(event);
  const bool last = event.type == Event::kDone || event.type == Event::kError;
  const bool too_slow = choice.bytes + bytes > limit_ && !last;
  if (!too_slow && choice.last && is_text(event) && choice.last->type == event.type) {
    choice.last->text += event.text;
    choice.last->logprobs.insert(choice.last->logprobs.end(), event.logprobs.begin(), event.logprobs.end());
  } else {
    choice.last = &events_.emplace_back(too_slow ? Event() : event);
    choice.last->choice = index;
  }
  if (too_slow) {
    choice.last->type = Event::kError;
    choice.last->text = "the answer was not read for so long that it was given up";
  }
  choice.bytes += bytes;
  choice.ended = last || too_slow;
  ready_.notify_all();
  return !too_slow;
}

void EventQueue::close() {
  const MutexLock lock(mutex_);
  closed_ = true;
  events_.clear();
  choices_.clear();
}

std::optional<Event> EventQueue::pop(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  const MutexLock lock(mutex_);
  while (events_.empty() && ready_.wait_until(mutex_, deadline)) {
  }
  if (events_.empty()) return std::nullopt;
  Event event = std::move(events_.front());
  Choice& choice = choices_[event.choice];
  if (choice.last == &events_.front()) choice.last = nullptr;
  choice.bytes -= std::min(choice.bytes, event_bytes(event));
  events_.pop_front();
  return event;
}

Event EventQueue::pop() {
  while (true) {
    if (auto event = pop(std::chrono::seconds(1))) return *std::move(event);
  }
}

}  // namespace gemma4
