// Connection: an accepted socket as a byte stream with limits. Reads are buffered and limited in bytes and time, so a
// client that sends too much or too slowly is disconnected. Writes wait for a slow reader only for a limited time.
// Private to http.cc.
#pragma once

#include <httplib.h>

#include <chrono>
#include <cstddef>
#include <string>

namespace gemma4 {

class Connection : public httplib::Stream {
 public:
  using Clock = std::chrono::steady_clock;

  Connection(int fd, double write_seconds);  // owns fd
  ~Connection() override;

  // Sets the limits: from now on at most `bytes` may be read, for at most `seconds`.
  void allow(size_t bytes, double seconds);
  bool wait_for_request(double seconds);  // false: none came in time
  bool alive() const;                     // false: the other side has closed or reset
  // Reads and discards what the client still sends. Closing with unread data would reset the connection, and the client
  // might lose the answer.
  void drain(size_t bytes, double seconds);
  void shut();  // from any thread: wakes a waiting thread and ends all reading and writing

  bool reusable = true;  // false: close after this answer

  bool is_readable() const override { return buffered() > 0; }
  bool is_writable() const override { return alive(); }
  ssize_t read(char* data, size_t size) override;
  ssize_t write(const char* data, size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  socket_t socket() const override { return 0; }  // only compared with FD_SETSIZE, which we do not use

 private:
  size_t buffered() const { return end_ - begin_; }
  bool wait(short what, Clock::time_point deadline) const;

  int fd_;
  double write_seconds_;
  size_t allowance_ = 0;
  Clock::time_point deadline_;
  size_t begin_ = 0, end_ = 0;
  char buffer_[16384];
};

}  // namespace gemma4
