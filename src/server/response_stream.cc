#include "server/response_stream.h"

#include <algorithm>
#include <atomic>
#include <deque>

#include "engine/event_queue.h"
#include "server/completion_request.h"

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

// Lives as long as the last sink.
struct ResponseStream::Shared {
  struct Choice {
    std::atomic<uint64_t> id = 0;  // 0: not submitted yet, or cancelled
    Clock::time_point last;        // event with content; only the sink touches it
  };

  explicit Shared(int count) : choices(count) {}

  void measure(Choice& choice, const Event& event) {
    const Clock::time_point now = Clock::now();
    if (event.type == Event::kDone) {
      if (event.usage.first_token_ms > 0) metrics->first_token.add(event.usage.first_token_ms / 1000);
      metrics->whole_request.add(seconds_since(start));
    } else if (event.type != Event::kError) {
      if (choice.last != Clock::time_point()) {
        metrics->between_pieces.add(std::chrono::duration<double>(now - choice.last).count());
      }
      choice.last = now;
    }
  }

  void sink(Engine& engine, int index, const Event& event) {
    Choice& choice = choices[index];
    measure(choice, event);
    const bool last = event.type == Event::kDone || event.type == Event::kError;
    if (queue.push(event, index) || last) return;
    if (const uint64_t id = choice.id.exchange(0)) engine.cancel(id);  // once: its reader is too slow or has gone
  }

  void cancel_all(Engine& engine) {
    for (Choice& choice : choices) {
      if (const uint64_t id = choice.id.exchange(0)) engine.cancel(id);
    }
  }

  EventQueue queue;
  std::deque<Choice> choices;
  std::shared_ptr<Metrics> metrics;
  Clock::time_point start = Clock::now();
};

ResponseStream::ResponseStream(Engine& engine, std::shared_ptr<Metrics> metrics, const std::vector<Request>& requests,
                               bool one_tool_call, const Preparation& preparation)
    : engine_(engine), one_tool_call_(one_tool_call) {
  for (const Request& request : requests) unfinished_ += request.n;
  called_.resize(unfinished_);
  over_.resize(unfinished_);
  call_ids_.resize(unfinished_);
  shared_ = std::make_shared<Shared>(unfinished_);
  shared_->metrics = std::move(metrics);
  try {
    int first = 0;  // choice of this request
    for (const Request& request : requests) {
      const uint64_t id = engine_.submit(
          request,
          [shared = shared_, first, &engine](const Event& event) { shared->sink(engine, first + event.choice, event); },
          preparation);
      for (int i = 0; i < request.n; ++i) shared_->choices[first + i].id = id + i;
      first += request.n;
    }
  } catch (...) {
    shared_->cancel_all(engine_);
    throw;
  }
}

ResponseStream::~ResponseStream() {
  shared_->queue.close();
  for (size_t i = 0; i < over_.size(); ++i) {
    if (over_[i]) shared_->choices[i].id = 0;
  }
  shared_->cancel_all(engine_);
}

// Returns whether the event is passed on. Sets the ids of tool calls, and with `one_tool_call` cancels a choice after
// its first call.
bool ResponseStream::keep(int index, Event& event) {
  const bool last = event.type == Event::kDone || event.type == Event::kError;
  if (last && !over_[index]) {
    over_[index] = true;
    --unfinished_;
  }
  if (!called_[index]) {
    if (event.type == Event::kToolCallBegin) call_ids_[index] = make_id("call_");
    if (event.type == Event::kToolCallBegin || event.type == Event::kToolCall) event.tool_call.id = call_ids_[index];
    if (event.type != Event::kToolCall || event.cut) return true;
    called_[index] = one_tool_call_;
    if (one_tool_call_) engine_.cancel(shared_->choices[index].id);
    return true;
  }
  if (event.type == Event::kDone && event.finish == Finish::kCancelled) event.finish = Finish::kToolCalls;
  return last;
}

std::optional<std::pair<int, Event>> ResponseStream::next(std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  while (!over()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    auto event = shared_->queue.pop(std::max(left, std::chrono::milliseconds(0)));
    if (!event) return std::nullopt;
    const int index = event->choice;
    if (keep(index, *event)) return std::pair(index, *std::move(event));
  }
  return std::nullopt;
}

}  // namespace gemma4
