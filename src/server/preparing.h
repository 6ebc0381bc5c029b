// How requests take turns at being prepared (parsed, tokenized, decoded, compiled), and what ends a preparation early.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <functional>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "engine/request.h"

namespace gemma4 {

// Turns: how many requests are prepared at a time. Clients get turns round robin, and none gets the last free turn
// while it has another: so one client's slow requests leave a turn for the others. "" stands for clients that nothing
// tells apart, and may have every turn. Among the requests of a client the next is the one with the lowest sum of when
// it began to wait and how long it has had a turn: a new one comes before one that was prepared for long, but not for
// ever.
class Turns {
 public:
  using Clock = std::chrono::steady_clock;

  // `large`: how many of them large requests may have. Those compute for long between two places where they make way,
  // so many at a time would keep each other, and a chat, from ending.
  explicit Turns(int count, int large = std::numeric_limits<int>::max()) : all_{count}, large_{large} {}

  // Waits. `used`: how long the request has had turns already. Throws CancelledError.
  void take(const std::string& client, const Cancellation& cancellation, Clock::duration used = {}, bool large = false)
      EXCLUDES(mutex_);
  void give_back(const std::string& client, bool large = false) EXCLUDES(mutex_);
  bool wanted() const { return waiting_ > 0; }  // by a request that has none

 private:
  struct Place {
    const std::string& client;
    const bool large;
    Clock::time_point order;
    bool granted = false;
    CondVar changed;  // of its own: no other waiter is woken
  };

  struct Share {
    const int count;
    int taken = 0;
    std::map<std::string, int> held;  // by client

    int held_by(const std::string& client) const;
    bool may_take(const std::string& client) const;
    void take(const std::string& client);
    void give_back(const std::string& client);
  };

  bool may_take(const Place& place) const REQUIRES(mutex_);
  std::list<Place*>::iterator next() REQUIRES(mutex_);
  void grant() REQUIRES(mutex_);

  std::atomic<int> waiting_ = 0;
  Mutex mutex_;
  Share all_ GUARDED_BY(mutex_), large_ GUARDED_BY(mutex_);
  std::list<Place*> queue_ GUARDED_BY(mutex_);  // who waits; places on the waiters' stacks
};

// Holds a turn of preparation.
class Turn {
 public:
  // How long a request is prepared before it makes way for one that waits: a chat of a few lines is ready before that.
  static constexpr std::chrono::milliseconds kSlice{20};
  // Above this a request is large: its JSON takes more than some ten milliseconds.
  static constexpr size_t kLargeBytes = size_t{64} << 10;

  // `bytes`: what the request will read. A large one has its place in the queue as if it had had turns before, 10 s for
  // a megabyte and 60 s at most: so a chat goes before the large requests that wait, as many as one address may send
  // (256, of which each takes a tenth of a second or a few), and they do not wait for ever.
  Turn(Turns& turns, std::string client, const Cancellation& cancellation, size_t bytes = 0)
      : turns_(turns),
        client_(std::move(client)),
        cancellation_(cancellation),
        large_(bytes > kLargeBytes),
        used_(std::min<Turns::Clock::duration>(std::chrono::seconds(60), std::chrono::microseconds(10) * bytes)) {
    take();
  }
  ~Turn() { give_back(); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  void take();  // throws CancelledError
  void give_back();
  void make_way();  // to a request that waits, if this one has had its slice. Throws CancelledError

 private:
  Turns& turns_;
  const std::string client_;
  const Cancellation& cancellation_;
  const bool large_;
  Turns::Clock::duration used_;
  Turns::Clock::time_point since_;
  bool held_ = false;
};

// Looks, while requests are prepared, at how long they take. It asks whether their clients are still there, and cancels
// where one is not or where the request has taken too long. And it lowers the priority of threads that have computed
// for long: the engine's threads and requests that take a few milliseconds have the cores first.
class PreparationWatch {
 public:
  static constexpr std::chrono::milliseconds kInterval{100};  // of asking whether clients are there
  static constexpr std::chrono::milliseconds kLook{10};       // at the processor time of threads
  static constexpr std::chrono::milliseconds kOwnTime{20};    // processor time before a thread's priority is lowered

  PreparationWatch();
  ~PreparationWatch();
  PreparationWatch(const PreparationWatch&) = delete;
  PreparationWatch& operator=(const PreparationWatch&) = delete;

  struct Watched {
    std::function<bool()> alive;
    std::chrono::steady_clock::time_point deadline;
    std::shared_ptr<Cancellation> cancellation = std::make_shared<Cancellation>();
    std::atomic<bool> late = false;     // cancelled by the deadline
    std::atomic<bool> stopped = false;  // cancelled by stop()

   private:
    friend class PreparationWatch;
    pid_t thread = 0;                     // that prepares it: the one that called add()
    clockid_t clock = 0;                  // its processor time
    std::chrono::nanoseconds at_first{};  // of that clock, when add() was called
    bool lowered = false;
  };
  void add(Watched& watched) EXCLUDES(mutex_);     // by the thread that prepares
  void remove(Watched& watched) EXCLUDES(mutex_);  // `alive` is not called any more when this returns
  int count() EXCLUDES(mutex_);                    // of requests that are watched
  void stop() EXCLUDES(mutex_);                    // cancels them, and those that come later

 private:
  void watch() EXCLUDES(mutex_);
  void ask_clients() REQUIRES(mutex_);
  void lower_priorities() REQUIRES(mutex_);
  void cancel_stopped() REQUIRES(mutex_);

  Mutex mutex_;
  CondVar changed_;
  std::list<Watched*> watched_ GUARDED_BY(mutex_);
  bool ending_ GUARDED_BY(mutex_) = false, stopped_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace gemma4
