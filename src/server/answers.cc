#include "server/answers.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "engine/event_queue.h"
#include "server/call.h"

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

// Lives as long as the last sink.
struct Answers::Shared {
  struct Choice {
    EventQueue queue;
    std::atomic<uint64_t> id = 0;  // 0: not submitted yet
    Clock::time_point last;        // piece; the engine's thread alone touches it
  };

  explicit Shared(size_t count) : choices(count) {}

  std::deque<Choice> choices;
  std::shared_ptr<Metrics> metrics;
  Clock::time_point start = Clock::now();
  std::mutex mutex;
  std::condition_variable ready;
  uint64_t pushed = 0;  // events so far

  void sink(Engine& engine, Choice& choice, const Event& event) {
    const Clock::time_point now = Clock::now();
    if (event.kind == Event::kDone) {
      if (event.usage.first_token_ms > 0) metrics->first_token.add(event.usage.first_token_ms / 1000);
      metrics->whole_request.add(seconds_since(start));
    } else if (event.kind != Event::kError) {
      if (choice.last != Clock::time_point()) {
        metrics->between_pieces.add(std::chrono::duration<double>(now - choice.last).count());
      }
      choice.last = now;
    }
    const bool last = event.kind == Event::kDone || event.kind == Event::kError;
    if (!choice.queue.push(event) && !last) {
      if (const uint64_t id = choice.id.exchange(0)) engine.cancel(id);  // once: its reader is too slow or has gone
    }
    {
      const std::lock_guard lock(mutex);
      ++pushed;
    }
    ready.notify_one();
  }
};

Answers::Answers(Engine& engine, std::shared_ptr<Metrics> metrics, std::vector<Request> requests, bool one_tool_call)
    : engine_(engine),
      shared_(std::make_shared<Shared>(requests.size())),
      one_tool_call_(one_tool_call),
      unfinished_(static_cast<int>(requests.size())),
      called_(requests.size()),
      over_(requests.size()) {
  shared_->metrics = std::move(metrics);
  try {
    for (size_t i = 0; i < requests.size(); ++i) {
      Shared::Choice& choice = shared_->choices[i];
      choice.id = engine_.submit(std::move(requests[i]), [shared = shared_, &choice, &engine](const Event& event) {
        shared->sink(engine, choice, event);
      });
    }
  } catch (...) {
    for (Shared::Choice& choice : shared_->choices) {
      if (const uint64_t id = choice.id.exchange(0)) engine_.cancel(id);
    }
    throw;
  }
}

Answers::~Answers() {
  for (size_t i = 0; i < over_.size(); ++i) {
    Shared::Choice& choice = shared_->choices[i];
    choice.queue.close();
    const uint64_t id = choice.id.exchange(0);
    if (!over_[i] && id != 0) engine_.cancel(id);
  }
}

// Whether the reader should see it; gives calls their ids and ends a choice after its first call where only one is
// wanted.
bool Answers::keep(int index, Event& event) {
  const bool last = event.kind == Event::kDone || event.kind == Event::kError;
  if (last && !over_[index]) {
    over_[index] = true;
    --unfinished_;
  }
  if (!called_[index]) {
    if (event.kind != Event::kToolCall) return true;
    event.tool_call.id = make_id("call_");
    called_[index] = one_tool_call_;
    if (one_tool_call_) engine_.cancel(shared_->choices[index].id);
    return true;
  }
  if (event.kind == Event::kDone && event.finish == Finish::kCancelled) event.finish = Finish::kToolCalls;
  return last;
}

std::optional<std::pair<int, Event>> Answers::next(std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  while (!over()) {
    uint64_t seen;
    {
      const std::lock_guard lock(shared_->mutex);
      seen = shared_->pushed;
    }
    for (size_t i = 0; i < over_.size(); ++i) {
      while (!over_[i]) {
        auto event = shared_->choices[i].queue.pop(std::chrono::milliseconds(0));
        if (!event) break;
        if (keep(static_cast<int>(i), *event)) return std::pair(static_cast<int>(i), *std::move(event));
      }
    }
    std::unique_lock lock(shared_->mutex);
    if (!shared_->ready.wait_until(lock, deadline, [&] { return shared_->pushed != seen; })) return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace gemma4
