#include "server/preparing.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>

#include "base/priority.h"

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kCancelCheck(50);

std::chrono::nanoseconds read_clock(clockid_t clock) {
  timespec time = {};
  clock_gettime(clock, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

}  // namespace

int Turns::Share::held_by(const std::string& client) const {
  const auto found = held.find(client);
  return found == held.end() ? 0 : found->second;
}

bool Turns::Share::may_take(const std::string& client) const {
  return taken < count && (client.empty() || held_by(client) < std::max(1, count - 1));
}

void Turns::Share::take(const std::string& client) {
  ++taken;
  ++held[client];
}

void Turns::Share::give_back(const std::string& client) {
  --taken;
  const auto found = held.find(client);
  if (--found->second == 0) held.erase(found);
}

bool Turns::may_take(const Place& place) const {
  return all_.may_take(place.client) && (!place.large || large_.may_take(place.client));
}

// Of the clients that may have another turn, one that holds the fewest.
std::list<Turns::Place*>::iterator Turns::next() {
  auto best = queue_.end();
  int fewest = 0;
  for (auto it = queue_.begin(); it != queue_.end(); ++it) {
    const Place& place = **it;
    if (!may_take(place)) continue;
    const int count = all_.held_by(place.client);
    if (best == queue_.end() || count < fewest || (count == fewest && place.order < (*best)->order)) {
      best = it, fewest = count;
    }
  }
  return best;
}

// Hands free turns to those that are next.
void Turns::grant() {
  for (auto it = next(); it != queue_.end(); it = next()) {
    Place& place = **it;
    queue_.erase(it);
    --waiting_;
    all_.take(place.client);
    if (place.large) large_.take(place.client);
    place.granted = true;
    place.changed.notify_all();
  }
}

void Turns::take(const std::string& client, const Cancellation& cancellation, Clock::duration used, bool large) {
  const MutexLock lock(mutex_);
  Place place{client, large, Clock::now() + used, false, {}};
  const auto at = queue_.insert(queue_.end(), &place);
  ++waiting_;
  grant();
  while (!place.granted && !cancellation.cancelled()) place.changed.wait_until(mutex_, Clock::now() + kCancelCheck);
  if (place.granted) return;
  queue_.erase(at);
  --waiting_;
  cancellation.check();
}

void Turns::give_back(const std::string& client, bool large) {
  const MutexLock lock(mutex_);
  all_.give_back(client);
  if (large) large_.give_back(client);
  grant();
}

void Turn::take() {
  turns_.take(client_, cancellation_, used_, large_);
  held_ = true;
  since_ = Turns::Clock::now();
}

void Turn::give_back() {
  if (!held_) return;
  turns_.give_back(client_, large_);
  held_ = false;
  used_ += Turns::Clock::now() - since_;
}

void Turn::make_way() {
  if (!held_ || !turns_.wanted() || Turns::Clock::now() - since_ < kSlice) return;
  give_back();
  take();
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
  watched.thread = gettid();
  pthread_getcpuclockid(pthread_self(), &watched.clock);
  watched.at_first = read_clock(watched.clock);
  watched.lowered = priority_is_lowered();
  const MutexLock lock(mutex_);
  watched_.push_back(&watched);
  if (stopped_) cancel_stopped();
  changed_.notify_all();
}

void PreparationWatch::remove(Watched& watched) {
  const MutexLock lock(mutex_);
  watched_.remove(&watched);
}

int PreparationWatch::count() {
  const MutexLock lock(mutex_);
  return static_cast<int>(watched_.size());
}

void PreparationWatch::stop() {
  const MutexLock lock(mutex_);
  stopped_ = true;
  cancel_stopped();
}

void PreparationWatch::cancel_stopped() {
  for (Watched* watched : watched_) {
    if (watched->cancellation->cancelled()) continue;
    watched->stopped = true;
    watched->cancellation->cancel();
  }
}

void PreparationWatch::watch() {
  const MutexLock lock(mutex_);
  Clock::time_point asked = Clock::now();
  while (!ending_) {
    if (watched_.empty()) {
      changed_.wait(mutex_);
      continue;
    }
    const Clock::time_point until = Clock::now() + kLook;
    while (!ending_ && Clock::now() < until) changed_.wait_until(mutex_, until);
    lower_priorities();
    if (Clock::now() - asked < kInterval) continue;
    ask_clients();
    asked = Clock::now();
  }
}

void PreparationWatch::ask_clients() {
  for (Watched* watched : watched_) {
    if (watched->cancellation->cancelled()) continue;
    const bool late = Clock::now() > watched->deadline;
    if (late) watched->late = true;
    if (late || (watched->alive && !watched->alive())) watched->cancellation->cancel();
  }
}

// A thread is there until remove() returns, so its number is no other's.
void PreparationWatch::lower_priorities() {
  for (Watched* watched : watched_) {
    if (watched->lowered || read_clock(watched->clock) - watched->at_first < kOwnTime) continue;
    lower_priority(watched->thread);
    watched->lowered = true;
  }
}

}  // namespace gemma4
