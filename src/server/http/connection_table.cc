#include "server/http/connection_table.h"

#include <algorithm>
#include <map>
#include <utility>

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kDroppedMax = 64;                        // at a time; ending takes a thread less than a millisecond
constexpr std::chrono::milliseconds kEndingMost{250};  // few threads wait longer for a core
constexpr std::chrono::seconds kBodyGrace{2};

}  // namespace

std::shared_ptr<ConnectionTable::Entry> ConnectionTable::admit(int fd) {
  const auto entry = std::make_shared<Entry>();
  entry->fd = fd;
  entry->network = peer_network(fd);
  entry->since = Clock::now();
  const MutexLock lock(mutex_);
  // A burst of new connections is faster than the threads of the dropped ones, which wait for nobody but a core. To
  // turn away who comes next would turn away others, too.
  const auto deadline = Clock::now() + kEndingMost;
  while (dropped_ >= kDroppedMax && !ending_ && ended_.wait_until(mutex_, deadline)) {
  }
  if (ending_) return nullptr;
  if (!place(*entry, false) && !place(*entry, true)) return nullptr;
  entries_.push_back(entry);
  return entry;
}

// Finds a place among the ordinary ones or in the reserve. False: none is free, and no connection there waits.
bool ConnectionTable::place(Entry& entry, bool reserved) {
  Entry* old = nullptr;
  if (!reserved && count(false, &entry.network) >= limits_.per_network) {
    if ((old = oldest(false, &entry.network)) == nullptr) return false;
  } else if (count(reserved, nullptr) >= (reserved ? limits_.reserve : limits_.connections)) {
    if ((old = oldest(reserved, nullptr)) == nullptr) return false;
  }
  if (old != nullptr && dropped_ >= kDroppedMax) return false;
  if (old != nullptr) drop(*old);
  entry.reserved = reserved;
  return true;
}

void ConnectionTable::attach(Entry& entry, Connection& connection) {
  const MutexLock lock(mutex_);
  entry.connection = &connection;
  if (entry.dropped) connection.shut_reading();
}

void ConnectionTable::wait(Entry& entry) {
  const MutexLock lock(mutex_);
  entry.waiting = entry.idle = true;
  entry.answered = false;
  entry.since = Clock::now();
  entry.body = 0;
  if (ending_) entry.connection->shut_reading();
}

void ConnectionTable::begin(Entry& entry) {
  const MutexLock lock(mutex_);
  entry.idle = false;
}

bool ConnectionTable::serve(Entry& entry) {
  const MutexLock lock(mutex_);
  entry.waiting = false;
  return !entry.dropped;
}

bool ConnectionTable::answer(Entry& entry) {
  const MutexLock lock(mutex_);
  entry.waiting = false;
  return !entry.dropped && !std::exchange(entry.answered, true);
}

void ConnectionTable::body_bytes(Entry& entry, size_t bytes) {
  const MutexLock lock(mutex_);
  if (entry.body == 0) entry.since = Clock::now();
  entry.body = bytes;
}

void ConnectionTable::remove(const std::shared_ptr<Entry>& entry) {
  const MutexLock lock(mutex_);
  if (entry->dropped) {
    --dropped_;
    ended_.notify_all();
  }
  std::erase(entries_, entry);
  if (entries_.empty()) empty_.notify_all();
}

bool ConnectionTable::drop_slow_body() {
  const MutexLock lock(mutex_);
  const auto now = Clock::now();
  Entry* slowest = nullptr;
  double least = 0;
  for (const auto& entry : entries_) {
    if (!entry->waiting || entry->dropped || entry->body == 0 || now - entry->since < kBodyGrace) continue;
    const double rate = static_cast<double>(entry->body) / std::chrono::duration<double>(now - entry->since).count();
    if (slowest != nullptr && rate >= least) continue;
    slowest = entry.get();
    least = rate;
  }
  if (slowest != nullptr) drop(*slowest);
  return slowest != nullptr;
}

bool ConnectionTable::crowded() const {
  const MutexLock lock(mutex_);
  return count(false, nullptr) > limits_.connections - limits_.connections / 4;
}

int ConnectionTable::open() const {
  const MutexLock lock(mutex_);
  return static_cast<int>(entries_.size());
}

uint64_t ConnectionTable::dropped() const {
  const MutexLock lock(mutex_);
  return dropped_total_;
}

int ConnectionTable::capacity() const { return limits_.connections + limits_.reserve + kDroppedMax; }

void ConnectionTable::shut_idle() {
  const MutexLock lock(mutex_);
  ending_ = true;
  ended_.notify_all();
  for (const auto& entry : entries_) {
    if (entry->idle && entry->connection != nullptr) entry->connection->shut_reading();
  }
}

void ConnectionTable::tell_all(std::string_view text) {
  const MutexLock lock(mutex_);
  for (const auto& entry : entries_) {
    if (entry->connection == nullptr) continue;
    const bool unanswered = !entry->idle && !entry->dropped && !std::exchange(entry->answered, true);
    if (unanswered) entry->connection->send_last(text);
    entry->connection->shut();
  }
}

void ConnectionTable::shut_all() {
  const MutexLock lock(mutex_);
  for (const auto& entry : entries_) {
    if (entry->connection != nullptr) entry->connection->shut();
  }
}

bool ConnectionTable::wait_until_empty(Clock::time_point deadline) {
  const MutexLock lock(mutex_);
  while (!entries_.empty()) {
    if (!empty_.wait_until(mutex_, deadline)) return entries_.empty();
  }
  return true;
}

// Null: none waits.
ConnectionTable::Entry* ConnectionTable::oldest(bool reserved, const std::string* network) {
  std::map<std::string, int> waiting;
  for (const auto& entry : entries_) waiting[entry->network] += entry->waiting && !entry->dropped;
  Entry* found = nullptr;
  for (const auto& entry : entries_) {
    if (!entry->waiting || entry->dropped || entry->reserved != reserved) continue;
    if (network != nullptr && entry->network != *network) continue;
    const auto worse = [&] {
      const int mine = waiting[entry->network], best = waiting[found->network];
      return mine != best ? mine > best : entry->since < found->since;
    };
    if (found == nullptr || worse()) found = entry.get();
  }
  return found;
}

void ConnectionTable::drop(Entry& entry) {
  entry.dropped = true;
  ++dropped_;
  ++dropped_total_;
  if (entry.connection != nullptr) entry.connection->shut_reading();
}

int ConnectionTable::count(bool reserved, const std::string* network) const {
  return static_cast<int>(std::ranges::count_if(entries_, [&](const auto& entry) {
    return !entry->dropped && entry->reserved == reserved && (network == nullptr || entry->network == *network);
  }));
}

}  // namespace gemma4
