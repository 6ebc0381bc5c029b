// Stranger: a connection to rank 0's port from some other program, for tests.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>

namespace gemma4 {

// A connection from some other program, open for the life of this object. Waits for the listener.
class Stranger {
 public:
  Stranger(int port, const std::string& says) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in at = {};
    at.sin_family = AF_INET;
    at.sin_port = htons(static_cast<uint16_t>(port));
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    while (connect(fd_, reinterpret_cast<sockaddr*>(&at), sizeof(at)) != 0) std::this_thread::yield();
    EXPECT_EQ(send(fd_, says.data(), says.size(), MSG_NOSIGNAL), static_cast<ssize_t>(says.size()));
  }
  ~Stranger() { close(fd_); }
  Stranger(const Stranger&) = delete;
  Stranger& operator=(const Stranger&) = delete;

  int descriptor() const { return fd_; }

  std::string hear(size_t most) const {
    std::string bytes(most, '\0');
    const ssize_t got = recv(fd_, bytes.data(), most, 0);
    bytes.resize(got > 0 ? static_cast<size_t>(got) : 0);
    return bytes;
  }
  void say(const std::string& bytes) const { (void)!::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }

 private:
  int fd_;
};

// What a process of the first version of the protocol said as rank 1 of `world`.
inline std::string old_hello(uint32_t world) {
  const uint32_t words[] = {0x6c346d67, 0x346b6e69, 1, 1, world, 0};
  return {reinterpret_cast<const char*>(words), sizeof(words)};
}

}  // namespace gemma4
