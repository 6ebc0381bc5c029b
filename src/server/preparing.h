// How requests take turns at being prepared (parsed, tokenized, decoded, compiled), and what ends a preparation early.
#pragma once

#include <chrono>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "engine/request.h"

namespace gemma4 {

// Turns: how many requests are prepared at a time. Clients get turns round robin, and none gets the last free turn
// while it has another: so one client's slow requests leave a turn for the others. "" stands for all clients without a
// key, and may have every turn.
class Turns {
 public:
  explicit Turns(int count) : count_(count) {}

  // Waits. Throws CancelledError.
  void take(const std::string& client, const Cancellation& cancellation) EXCLUDES(mutex_);
  void give_back(const std::string& client) EXCLUDES(mutex_);

 private:
  bool may_take(const std::string& client) const REQUIRES(mutex_);

  const int count_;
  Mutex mutex_;
  CondVar changed_;
  int taken_ GUARDED_BY(mutex_) = 0;
  std::map<std::string, int> held_ GUARDED_BY(mutex_);  // by client
  std::list<std::string> queue_ GUARDED_BY(mutex_);     // who waits, in order of arrival
};

// Asks, while requests are prepared, whether their clients are still there, and cancels where one is not or where the
// request has taken too long.
class PreparationWatch {
 public:
  static constexpr std::chrono::milliseconds kInterval{100};

  PreparationWatch();
  ~PreparationWatch();
  PreparationWatch(const PreparationWatch&) = delete;
  PreparationWatch& operator=(const PreparationWatch&) = delete;

  struct Watched {
    std::function<bool()> alive;
    std::chrono::steady_clock::time_point deadline;
    std::shared_ptr<Cancellation> cancellation = std::make_shared<Cancellation>();
    std::atomic<bool> late = false;  // cancelled by the deadline
  };
  void add(Watched& watched) EXCLUDES(mutex_);
  void remove(Watched& watched) EXCLUDES(mutex_);  // `alive` is not called any more when this returns

 private:
  void watch() EXCLUDES(mutex_);

  Mutex mutex_;
  CondVar changed_;
  std::list<Watched*> watched_ GUARDED_BY(mutex_);
  bool ending_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace gemma4
