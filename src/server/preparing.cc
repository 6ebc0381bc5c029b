#include "server/preparing.h"

#include <algorithm>

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kCancelCheck(50);

}  // namespace

bool Turns::may_take(const std::string& client) const {
  if (taken_ >= count_) return false;
  if (client.empty()) return true;
  const auto held = held_.find(client);
  return held == held_.end() || held->second < std::max(1, count_ - 1);
}

// The first of the queue whose client may have another turn, and holds the fewest, is next.
void Turns::take(const std::string& client, const Cancellation& cancellation) {
  const MutexLock lock(mutex_);
  const auto place = queue_.insert(queue_.end(), client);
  while (!cancellation.cancelled()) {
    auto next = queue_.end();
    int fewest = 0;
    for (auto it = queue_.begin(); it != queue_.end(); ++it) {
      const auto held = held_.find(*it);
      const int count = held == held_.end() ? 0 : held->second;
      if (may_take(*it) && (next == queue_.end() || count < fewest)) next = it, fewest = count;
    }
    if (next == place) break;
    changed_.wait_until(mutex_, Clock::now() + kCancelCheck);
  }
  queue_.erase(place);
  changed_.notify_all();
  cancellation.check();
  ++taken_;
  ++held_[client];
}

void Turns::give_back(const std::string& client) {
  const MutexLock lock(mutex_);
  --taken_;
  const auto held = held_.find(client);
  if (--held->second == 0) held_.erase(held);
  changed_.notify_all();
}

PreparationWatch::PreparationWatch() : thread_([this] { watch(); }) {}

PreparationWatch::~PreparationWatch() {
  {
    const MutexLock lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void PreparationWatch::add(Watched& watched) {
  const MutexLock lock(mutex_);
  watched_.push_back(&watched);
  changed_.notify_all();
}

void PreparationWatch::remove(Watched& watched) {
  const MutexLock lock(mutex_);
  watched_.remove(&watched);
}

void PreparationWatch::watch() {
  const MutexLock lock(mutex_);
  while (!ending_) {
    if (watched_.empty()) {
      changed_.wait(mutex_);
      continue;
    }
    changed_.wait_until(mutex_, Clock::now() + kInterval);
    for (Watched* watched : watched_) {
      if (watched->cancellation->cancelled()) continue;
      const bool late = Clock::now() > watched->deadline;
      if (late) watched->late = true;
      if (late || (watched->alive && !watched->alive())) watched->cancellation->cancel();
    }
  }
}

}  // namespace gemma4
