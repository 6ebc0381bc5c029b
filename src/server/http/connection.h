// Connection: an accepted socket as a byte stream with limits. Reads are buffered and limited in bytes and time, so a
// client that sends too much or too slowly is disconnected. Writes wait for a slow reader only for a limited time.
// Private to http.cc and connection_table.cc.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>

namespace gemma4 {

class Connection {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Received { kBytes, kEnd, kLate, kTooMuch };

  Connection(int fd, double write_seconds);  // owns fd
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Sets the limits: from now on at most about `bytes` may be consumed, for at most `seconds`.
  void allow(size_t bytes, double seconds);
  bool wait_for_request(double seconds);  // false: none came in time
  bool alive() const;                     // false: the other side has closed or reset
  std::string network() const;            // as peer_network() has it
  std::string_view buffered() const { return {buffer_ + begin_, end_ - begin_}; }  // received and not consumed
  void consume(size_t bytes);
  Received receive();                      // waits for bytes; call it when none are buffered
  bool write(std::string_view text);       // false: not all of it was taken; reusable is then false
  void write_last(std::string_view text);  // does not wait; ends the writing
  void send_last(std::string_view text);   // the same without reading: from any thread, where no other one writes
  // Reads and discards what the client still sends. Closing with unread data would reset the connection, and the client
  // might lose the answer.
  void drain(size_t bytes, double seconds);
  // From any thread. Wakes a waiting thread and ends all reading; shut() ends all writing too.
  void shut();
  void shut_reading();

  bool reusable = true;  // false: close after this answer

 private:
  bool wait(short what, Clock::time_point deadline) const;

  int fd_;
  double write_seconds_;
  size_t allowance_ = 0;
  Clock::time_point deadline_;
  size_t begin_ = 0, end_ = 0;
  char buffer_[16384];
};

// Whose connection this is, for a limit of connections for each: an IPv4 address, or the first 64 bits of an IPv6 one,
// which is what one network gets. "" if the socket has no address.
std::string peer_network(int fd);
std::string peer_address(int fd);  // as text: "10.0.0.7", "fd00::7"; "" if there is none

}  // namespace gemma4
