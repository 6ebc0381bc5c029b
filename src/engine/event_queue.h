// EventQueue: carries one request's events from the engine's thread to whoever reads them, and is the bound on a slow
// reader. push() never waits: neighbouring pieces of text are joined, and a reader that falls more than `limit` bytes
// behind loses its request (the queue ends with a kError event, and push() returns false so that the sink may cancel).
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>

#include "engine/request.h"

namespace gemma4 {

class EventQueue {
 public:
  explicit EventQueue(size_t limit = 1 << 20) : limit_(limit) {}

  bool push(const Event& event);  // false: the reader is too slow or has closed the queue
  void close();                   // by the reader: it wants no more

  // The next event; nothing where none came in time. After kDone or kError none will.
  std::optional<Event> pop(std::chrono::milliseconds timeout);
  Event pop();  // waits for as long as it takes

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Event> events_;
  size_t limit_, bytes_ = 0;
  bool closed_ = false;
};

}  // namespace gemma4
