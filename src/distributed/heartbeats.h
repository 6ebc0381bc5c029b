// Heartbeats: each process sends a byte every second to those it is connected with, on a connection of its own. A
// thread that does nothing else sends them, so a process that loads or computes is heard, and one that is stopped is
// not.
#pragma once

#include <chrono>
#include <optional>
#include <vector>

namespace gemma4 {

class Heartbeats {
 public:
  using Duration = std::chrono::milliseconds;

  // Owns `sockets`, one for each rank, -1 for none. Without any, nobody is ever silent.
  explicit Heartbeats(std::vector<int> sockets);
  ~Heartbeats();
  Heartbeats(const Heartbeats&) = delete;
  Heartbeats& operator=(const Heartbeats&) = delete;

  bool empty() const { return peers_.empty(); }
  // How long to wait between two calls of beat().
  static Duration interval(Duration limit);
  // Sends one beat to each peer and receives theirs. Returns a rank that was silent for `limit`. Time during which this
  // process was itself stopped does not count.
  std::optional<int> beat(Duration limit);

 private:
  struct Peer {
    int rank, fd;
    Duration silent{0};
  };
  std::vector<Peer> peers_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace gemma4
