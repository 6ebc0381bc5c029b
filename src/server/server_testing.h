// Test support: an HTTP client on raw sockets, which can also send what a well-behaved client would not.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"

namespace gemma4::test {

struct Response {
  int status = 0;                              // 0: the connection ended without an answer
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // without the framing of chunks
};

class Socket {
 public:
  // receive_bytes > 0: the size of the system's receive buffer.
  explicit Socket(int port, int receive_bytes = 0) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_bytes > 0) setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval limit = {300, 0};  // a sanitised build on a busy machine is slow
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) throw Error("cannot connect");
  }
  ~Socket() { ::close(fd_); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  bool send(const std::string& bytes) {
    for (size_t at = 0; at < bytes.size();) {
      const ssize_t sent = ::send(fd_, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
      if (sent <= 0) return false;
      at += sent;
    }
    return true;
  }

  // Receives at least one byte; "" at the end.
  std::string receive() {
    char buffer[65536];
    const ssize_t got = ::recv(fd_, buffer, sizeof(buffer), 0);
    return got > 0 ? std::string(buffer, got) : "";
  }

  // Receives until `text` has come, or until the end; returns what came.
  std::string receive_until(std::string_view text) {
    std::string seen;
    for (std::string more = "first"; !more.empty() && seen.find(text) == std::string::npos;) seen += more = receive();
    return seen;
  }

  // Waits for bytes and returns them; response() still reads them. "" at the end.
  std::string peek() { return buffer_.empty() && !more() ? "" : buffer_; }

  Response response() {
    Response out;
    size_t end;
    while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
      if (!more()) return out;
    }
    out.status = std::stoi(buffer_.substr(9, 3));
    for (size_t at = buffer_.find("\r\n") + 2; at < end;) {
      const size_t stop = buffer_.find("\r\n", at), colon = buffer_.find(": ", at);
      std::string name = buffer_.substr(at, colon - at);
      std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
      out.headers[name] = buffer_.substr(colon + 2, stop - colon - 2);
      at = stop + 2;
    }
    buffer_.erase(0, end + 4);
    if (out.headers["transfer-encoding"] == "chunked") {
      read_chunks(out);
    } else {
      const size_t length = std::stoul("0" + out.headers["content-length"]);
      while (buffer_.size() < length && more()) {
      }
      out.body = buffer_.substr(0, length);
      buffer_.erase(0, length);
    }
    return out;
  }

 private:
  bool more() {
    const std::string bytes = receive();
    buffer_ += bytes;
    return !bytes.empty();
  }

  void read_chunks(Response& out) {
    while (true) {
      size_t end;
      while ((end = buffer_.find("\r\n")) == std::string::npos) {
        if (!more()) return;
      }
      const size_t size = std::stoul(buffer_.substr(0, end), nullptr, 16);
      while (buffer_.size() < end + 2 + size + 2) {
        if (!more()) return;
      }
      out.body += buffer_.substr(end + 2, size);
      buffer_.erase(0, end + 2 + size + 2);
      if (size == 0) return;
    }
  }

  int fd_;
  std::string buffer_;
};

using Headers = std::vector<std::pair<std::string, std::string>>;

inline std::string http_text(const std::string& method, const std::string& path, const std::string& body,
                             const Headers& headers = {}) {
  std::string text = method + " " + path + " HTTP/1.1\r\nHost: localhost\r\n";
  for (const auto& [name, value] : headers) text += name + ": " + value + "\r\n";
  if (method == "POST") {
    text += "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
  }
  return text + "\r\n" + body;
}

inline Response ask(int port, const std::string& method, const std::string& path, const std::string& body = "",
                    const Headers& headers = {}) {
  Socket socket(port);
  socket.send(http_text(method, path, body, headers));
  return socket.response();
}

}  // namespace gemma4::test
