#include "server/http/connection.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace gemma4 {
namespace {

Connection::Clock::time_point after(double seconds) {
  return Connection::Clock::now() +
         std::chrono::duration_cast<Connection::Clock::duration>(std::chrono::duration<double>(seconds));
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
  if (!buffered().empty()) return true;
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

void Connection::shut_reading() { ::shutdown(fd_, SHUT_RD); }

void Connection::consume(size_t bytes) {
  begin_ += bytes;
  allowance_ -= std::min(bytes, allowance_);
}

Connection::Received Connection::receive() {
  if (allowance_ == 0) return Received::kTooMuch;
  begin_ = end_ = 0;
  while (true) {
    const ssize_t got = ::recv(fd_, buffer_, sizeof(buffer_), MSG_DONTWAIT);
    if (got > 0) {
      end_ = got;
      return Received::kBytes;
    }
    if (got == 0) return Received::kEnd;
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (!wait(POLLIN, deadline_)) return Received::kLate;
    } else if (errno != EINTR) {
      return Received::kEnd;
    }
  }
}

bool Connection::write(std::string_view text) {
  while (!text.empty()) {
    const ssize_t sent = ::send(fd_, text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) {
      text.remove_prefix(sent);
    } else if (errno != EINTR) {
      if ((errno != EAGAIN && errno != EWOULDBLOCK) || !wait(POLLOUT, after(write_seconds_))) {
        return reusable = false;
      }
    }
  }
  return true;
}

std::string Connection::network() const { return peer_network(fd_); }

void Connection::send_last(std::string_view text) {
  [[maybe_unused]] const ssize_t sent = ::send(fd_, text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  ::shutdown(fd_, SHUT_WR);
}

void Connection::write_last(std::string_view text) {
  send_last(text);
  // Unread bytes would reset the connection, and the client might lose the answer.
  for (int i = 0; i < 64 && ::recv(fd_, buffer_, sizeof(buffer_), MSG_DONTWAIT) > 0; ++i) {
  }
}

std::string peer_address(int fd) {
  sockaddr_storage storage = {};
  socklen_t size = sizeof(storage);
  char text[NI_MAXHOST];
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&storage), &size) != 0) return "";
  if (getnameinfo(reinterpret_cast<sockaddr*>(&storage), size, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) != 0) {
    return "";
  }
  const std::string address = text;
  return address.starts_with("::ffff:") ? address.substr(7) : address;
}

std::string peer_network(int fd) {
  sockaddr_storage storage = {};
  socklen_t size = sizeof(storage);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&storage), &size) != 0) return "";
  if (storage.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(storage);
    return std::string(reinterpret_cast<const char*>(&v4.sin_addr), 4);
  }
  if (storage.ss_family != AF_INET6) return "";
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(storage);
  const char* bytes = reinterpret_cast<const char*>(&v6.sin6_addr);
  return IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr) ? std::string(bytes + 12, 4) : std::string(bytes, 8);
}

}  // namespace gemma4
