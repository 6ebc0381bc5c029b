#include "server/connection.h"

#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace gemma4 {
namespace {

Connection::Clock::time_point after(double seconds) {
  return Connection::Clock::now() +
         std::chrono::duration_cast<Connection::Clock::duration>(std::chrono::duration<double>(seconds));
}

void address(int fd, int (*get)(int, sockaddr*, socklen_t*), std::string& ip, int& port) {
  sockaddr_storage storage = {};
  socklen_t size = sizeof(storage);
  auto* name = reinterpret_cast<sockaddr*>(&storage);
  char host[NI_MAXHOST], service[NI_MAXSERV];
  if (get(fd, name, &size) != 0 ||
      getnameinfo(name, size, host, sizeof(host), service, sizeof(service), NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return;
  }
  ip = host;
  port = std::atoi(service);
}

}  // namespace

Connection::Connection(int fd, double write_seconds) : fd_(fd), write_seconds_(write_seconds) {
  const int on = 1;
  setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // tokens are small packets, which must not be delayed
}

Connection::~Connection() { ::close(fd_); }

void Connection::allow(size_t bytes, double seconds) {
  allowance_ = bytes;
  deadline_ = after(seconds);
}

bool Connection::wait(short what, Clock::time_point deadline) const {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return false;
    pollfd entry = {fd_, what, 0};
    const int ready = ::poll(&entry, 1, static_cast<int>(std::min<int64_t>(left, 1 << 20)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

bool Connection::wait_for_request(double seconds) {
  if (buffered() > 0) return true;
  if (!wait(POLLIN, after(seconds))) return false;
  char byte;
  return ::recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

bool Connection::alive() const {
  pollfd entry = {fd_, POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) == 0;
}

void Connection::drain(size_t bytes, double seconds) {
  ::shutdown(fd_, SHUT_WR);
  const auto deadline = after(seconds);
  while (wait(POLLIN, deadline)) {
    const ssize_t got = ::recv(fd_, buffer_, sizeof(buffer_), MSG_DONTWAIT);
    if (got <= 0 || static_cast<size_t>(got) >= bytes) return;
    bytes -= got;
  }
}

void Connection::shut() { ::shutdown(fd_, SHUT_RDWR); }

ssize_t Connection::read(char* data, size_t size) {
  if (allowance_ == 0) return reusable = false, -1;
  while (buffered() == 0) {
    begin_ = end_ = 0;
    const ssize_t got = ::recv(fd_, buffer_, sizeof(buffer_), MSG_DONTWAIT);
    if (got == 0) return 0;
    if (got > 0) {
      end_ = got;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (!wait(POLLIN, deadline_)) return reusable = false, -1;
    } else if (errno != EINTR) {
      return reusable = false, -1;
    }
  }
  const size_t count = std::min({size, buffered(), allowance_});
  std::memcpy(data, buffer_ + begin_, count);
  begin_ += count;
  allowance_ -= count;
  return static_cast<ssize_t>(count);
}

ssize_t Connection::write(const char* data, size_t size) {
  while (true) {
    const ssize_t sent = ::send(fd_, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) return sent;
    if (errno == EINTR) continue;
    if ((errno != EAGAIN && errno != EWOULDBLOCK) || !wait(POLLOUT, after(write_seconds_))) {
      return reusable = false, -1;
    }
  }
}

void Connection::get_remote_ip_and_port(std::string& ip, int& port) const { address(fd_, getpeername, ip, port); }
void Connection::get_local_ip_and_port(std::string& ip, int& port) const { address(fd_, getsockname, ip, port); }

}  // namespace gemma4
