// EventQueue: carries the events of one or more choices from the engine's thread to the thread that reads them, in the
// order in which they happened, and bounds a slow reader. push() never waits. Text that a choice still has in the queue
// is joined with what follows, and a choice of which the reader leaves more than `limit` bytes unread is lost: it ends
// with a kError event, and push() returns false so that the sink may cancel it.
#pragma once

#include <chrono>
#include <cstddef>
#include <list>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "engine/request.h"

namespace gemma4 {

class EventQueue {
 public:
  explicit EventQueue(size_t limit = 1 << 20) : limit_(limit) {}

  // `choice` takes the place of Event::choice, for a reader of several prompts. False: the reader is too slow, or has
  // closed the queue.
  bool push(const Event& event, int choice);
  bool push(const Event& event) { return push(event, event.choice); }
  void close();  // by the reader: it wants no more

  // The next event of any choice; nothing where none came in time. A choice has none after kDone or kError.
  std::optional<Event> pop(std::chrono::milliseconds timeout);
  Event pop();  // waits for as long as it takes

 private:
  struct Choice {
    Event* last = nullptr;  // its newest event in `events_`
    size_t bytes = 0;       // unread
    bool ended = false;
  };

  const size_t limit_;
  Mutex mutex_;
  CondVar ready_;
  std::list<Event> events_ GUARDED_BY(mutex_);
  std::vector<Choice> choices_ GUARDED_BY(mutex_);
  bool closed_ GUARDED_BY(mutex_) = false;
};

}  // namespace gemma4
