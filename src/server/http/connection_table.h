// ConnectionTable: who may have a connection. At most `connections` are open, of them `per_network` of one network, and
// `reserve` beyond that for the questions that operators must always get answered (/health, /metrics). When a limit is
// reached, a connection that waits for its request (idle, or sending a header or body) is dropped for the new one: the
// oldest of the network that has most of them. One whose request is being answered is never dropped. http.cc calls it;
// all functions may be called from any thread. Threads are bounded by capacity().
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "server/http/connection.h"

namespace gemma4 {

struct ConnectionLimits {
  int connections = 512;
  int per_network = 256;
  int reserve = 16;
};

class ConnectionTable {
 public:
  struct Entry;

  explicit ConnectionTable(const ConnectionLimits& limits) : limits_(limits) {}

  // Takes the new connection, perhaps for an old one; null: there is no place for it. May wait a quarter of a second.
  std::shared_ptr<Entry> admit(int fd);
  void attach(Entry& entry, Connection& connection);  // its thread has it now
  // From wait() to serve() the connection may be dropped. False: it has been, and its thread must end it.
  void wait(Entry& entry);
  void begin(Entry& entry);  // the first bytes of the request are there
  bool serve(Entry& entry);
  bool answer(Entry& entry);  // its thread writes the answer now. False: dropped, or tell_all() was first
  void body_bytes(Entry& entry, size_t bytes);  // that its body holds by now
  void remove(const std::shared_ptr<Entry>& entry);

  // Drops the body that arrives slowest, of those that have had 2 seconds. False: there is none.
  bool drop_slow_body();
  bool crowded() const;  // few places are left: none should be kept idle
  int open() const;
  uint64_t dropped() const;  // since the start
  int capacity() const;      // the most that are open, with those that were dropped and are about to end
  void shut_idle();          // admits no more, and ends those that are idle
  // Sends `text` to those whose request is there and has no answer yet, and ends all. Waits for no client.
  void tell_all(std::string_view text);
  void shut_all();  // ends all
  bool wait_until_empty(std::chrono::steady_clock::time_point deadline);

 private:
  bool place(Entry& entry, bool reserved) REQUIRES(mutex_);
  Entry* oldest(bool reserved, const std::string* network) REQUIRES(mutex_);
  void drop(Entry& entry) REQUIRES(mutex_);
  int count(bool reserved, const std::string* network) const REQUIRES(mutex_);

  const ConnectionLimits limits_;
  mutable Mutex mutex_;
  CondVar empty_, ended_;
  std::vector<std::shared_ptr<Entry>> entries_ GUARDED_BY(mutex_);
  int dropped_ GUARDED_BY(mutex_) = 0;  // of the entries: their threads are about to end
  uint64_t dropped_total_ GUARDED_BY(mutex_) = 0;
  bool ending_ GUARDED_BY(mutex_) = false;
};

struct ConnectionTable::Entry {
  int fd = -1;
  std::string network;
  bool reserved = false;  // may only ask what the reserve is for

 private:
  friend class ConnectionTable;
  // Under the table's mutex.
  Connection* connection = nullptr;
  bool waiting = true, idle = true, dropped = false;
  bool answered = false;                        // its request; or told that it is not
  std::chrono::steady_clock::time_point since;  // it waits
  size_t body = 0;
};

}  // namespace gemma4
