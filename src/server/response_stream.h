// ResponseStream: the events of all choices of one HTTP request, in the order in which they happen. Destroying it
// before the end cancels the remaining choices, so a client that disconnects costs nothing.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "server/log/metrics.h"

namespace gemma4 {

class ResponseStream {
 public:
  // Submits; throws as Engine::submit does. The choices are counted through: those of the first request come first.
  ResponseStream(Engine& engine, std::shared_ptr<Metrics> metrics, const std::vector<Request>& requests,
                 bool one_tool_call, const Preparation& preparation);
  ~ResponseStream();
  ResponseStream(const ResponseStream&) = delete;
  ResponseStream& operator=(const ResponseStream&) = delete;

  // The next event and its choice; nothing if none came within the timeout. Tool calls have ids. With `one_tool_call` a
  // choice ends after its first call.
  std::optional<std::pair<int, Event>> next(std::chrono::milliseconds timeout);
  size_t choices() const { return over_.size(); }
  bool over() const { return unfinished_ == 0; }

 private:
  struct Shared;
  bool keep(int index, Event& event);

  Engine& engine_;
  std::shared_ptr<Shared> shared_;
  bool one_tool_call_;
  int unfinished_ = 0;
  std::vector<bool> called_, over_;    // [choices]
  std::vector<std::string> call_ids_;  // [choices] of the call that was begun last
};

}  // namespace gemma4
