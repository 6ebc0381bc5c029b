// ControlChannel::rendezvous(): rank 0 listens; the other ranks connect and send a handshake with their rank. Any other
// client is disconnected.
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "base/check.h"
#include "distributed/control_channel.h"

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;

struct Handshake {
  uint64_t magic = 0x346b6e696c346d67;  // "gm4link4"
  uint32_t version = 1, rank = 0, world = 0, zero = 0;
};

struct Descriptor {
  explicit Descriptor(int descriptor) : fd(descriptor) {}
  Descriptor(Descriptor&& other) noexcept : fd(std::exchange(other.fd, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept { return std::swap(fd, other.fd), *this; }
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
  int release() { return std::exchange(fd, -1); }
  int fd;
};

std::string where(const ProcessInfo& process) { return process.address + " port " + std::to_string(process.port); }

std::shared_ptr<addrinfo> resolve(const char* host, int port, std::string* why) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (host == nullptr ? AI_PASSIVE : 0);
  const int code = getaddrinfo(host, std::to_string(port).c_str(), &hints, &found);
  if (code != 0) *why = gai_strerror(code);
  return {code == 0 ? found : nullptr, [](addrinfo* list) {
            if (list != nullptr) freeaddrinfo(list);
          }};
}

Descriptor socket_for(const addrinfo& at) {
  return Descriptor(socket(at.ai_family, at.ai_socktype | SOCK_CLOEXEC, at.ai_protocol));
}

void set(int fd, int level, int option, int value) { setsockopt(fd, level, option, &value, sizeof(value)); }

void limit_waits(int fd, std::chrono::milliseconds wait) {
  const timeval limit = {wait.count() / 1000, wait.count() % 1000 * 1000};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

// The final options of a connection: messages leave at once, and a host that vanishes is noticed within half a minute.
void set_socket_options(int fd) {
  limit_waits(fd, std::chrono::milliseconds(0));
  set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
  set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 30'000);
}

bool send_handshake(int fd, const ProcessInfo& process) {
  Handshake handshake;
  handshake.rank = static_cast<uint32_t>(process.rank), handshake.world = static_cast<uint32_t>(process.world);
  return send(fd, &handshake, sizeof(handshake), MSG_NOSIGNAL) == sizeof(handshake);
}

// The handshake of the other end; nothing if it sends none, or not one of this program.
std::optional<Handshake> receive_handshake(int fd) {
  Handshake handshake;
  if (recv(fd, &handshake, sizeof(handshake), MSG_WAITALL) != sizeof(handshake)) return std::nullopt;
  const Handshake ours;
  if (handshake.magic != ours.magic || handshake.version != ours.version) return std::nullopt;
  return handshake;
}

bool is_loopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    return ntohl(reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr) >> 24 == 127;
  }
  return address->sa_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
}

// Listens on the loopback address if that is rank 0's. Otherwise it listens on all addresses, because the given one may
// be a name that only other hosts resolve to this one.
Descriptor listen_at(const ProcessInfo& process) {
  std::string why;
  auto found = resolve(process.address.c_str(), process.port, &why);
  if (!found || !is_loopback(found->ai_addr)) found = resolve(nullptr, process.port, &why);
  for (const addrinfo* at = found.get(); at != nullptr; at = at->ai_next) {
    Descriptor fd = socket_for(*at);
    if (fd.fd < 0) continue;
    set(fd.fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (at->ai_family == AF_INET6) set(fd.fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    if (bind(fd.fd, at->ai_addr, at->ai_addrlen) == 0 && listen(fd.fd, 128) == 0) return fd;
    why = std::strerror(errno);
  }
  throw Error("rank 0 cannot listen at " + where(process) + ": " + why +
              "; choose another port by the variable MASTER_PORT, for all processes");
}

std::string missing_ranks(const std::vector<int>& sockets) {
  std::string ranks;
  int count = 0;
  for (size_t r = 1; r < sockets.size(); ++r) {
    if (sockets[r] >= 0) continue;
    ranks += (count++ > 0 ? ", " : "") + std::to_string(r);
  }
  return (count > 1 ? "ranks " : "rank ") + ranks;
}

// Receives the handshake of a new connection and adds it to `sockets`.
void accept_rank(Descriptor from, const ProcessInfo& process, std::vector<int>& sockets) {
  if (from.fd < 0) return;
  limit_waits(from.fd, std::chrono::seconds(2));
  const std::optional<Handshake> handshake = receive_handshake(from.fd);
  if (!handshake) return;  // some other program
  const std::string name = "rank " + std::to_string(handshake->rank);
  if (handshake->world != static_cast<uint32_t>(process.world)) {
    throw Error(name + " says that there are " + std::to_string(handshake->world) +
                " processes, and rank 0 that there are " + std::to_string(process.world));
  }
  if (handshake->rank == 0 || handshake->rank >= handshake->world || sockets[handshake->rank] >= 0) {
    throw Error("two processes say that they are " + name);
  }
  set_socket_options(from.fd);
  sockets[handshake->rank] = from.release();
}

struct Sockets {
  explicit Sockets(int count) : fds(static_cast<size_t>(count), -1) {}
  ~Sockets() {
    for (const int fd : fds) Descriptor{fd};
  }
  std::vector<int> fds;
};

std::shared_ptr<ControlChannel> accept_ranks(const ProcessInfo& process, std::chrono::milliseconds timeout) {
  const Descriptor listener = listen_at(process);
  Sockets sockets(process.world);
  const Clock::time_point end = Clock::now() + timeout;
  while (std::count(sockets.fds.begin(), sockets.fds.end(), -1) > 1) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    if (left <= 0) {
      throw Error(missing_ranks(sockets.fds) + " of " + std::to_string(process.world) + " did not come to rank 0 at " +
                  where(process) + " within " + std::to_string(timeout.count() / 1000) + " s");
    }
    pollfd wait = {listener.fd, POLLIN, 0};
    if (poll(&wait, 1, static_cast<int>(left)) <= 0) continue;
    accept_rank(Descriptor(accept4(listener.fd, nullptr, nullptr, SOCK_CLOEXEC)), process, sockets.fds);
  }
  for (int r = 1; r < process.world; ++r) send_handshake(sockets.fds[static_cast<size_t>(r)], process);
  return std::make_shared<ControlChannel>(process, std::exchange(sockets.fds, {}));
}

// TCP self-connect: without a listener, a connection within one host may get its own port as the destination.
bool connected_to_itself(int fd) {
  sockaddr_storage here = {}, there = {};
  socklen_t here_size = sizeof(here), there_size = sizeof(there);
  return getsockname(fd, reinterpret_cast<sockaddr*>(&here), &here_size) == 0 &&
         getpeername(fd, reinterpret_cast<sockaddr*>(&there), &there_size) == 0 && here_size == there_size &&
         std::memcmp(&here, &there, here_size) == 0;
}

Descriptor connect_once(const ProcessInfo& process, std::string* why) {
  const auto found = resolve(process.address.c_str(), process.port, why);
  for (const addrinfo* at = found.get(); at != nullptr; at = at->ai_next) {
    Descriptor fd = socket_for(*at);
    if (fd.fd < 0) continue;
    limit_waits(fd.fd, std::chrono::seconds(5));
    if (connect(fd.fd, at->ai_addr, at->ai_addrlen) == 0 && !connected_to_itself(fd.fd)) return fd;
    *why = std::strerror(errno);
  }
  return Descriptor(-1);
}

std::shared_ptr<ControlChannel> connect_to_rank_0(const ProcessInfo& process, std::chrono::milliseconds timeout) {
  const Clock::time_point end = Clock::now() + timeout;
  std::string why;
  Descriptor fd = connect_once(process, &why);
  while (fd.fd < 0) {
    if (Clock::now() > end) {
      throw Error("rank 0 is not at " + where(process) + " (" + why + "), for " +
                  std::to_string(timeout.count() / 1000) + " s");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    fd = connect_once(process, &why);
  }
  // Rank 0 answers when all ranks are connected, and its time limit ends before this one.
  limit_waits(fd.fd, timeout + std::chrono::seconds(5));
  if (!send_handshake(fd.fd, process) || !receive_handshake(fd.fd)) {
    throw Error("what listens at " + where(process) + " did not take this process as rank " +
                std::to_string(process.rank) + " of " + std::to_string(process.world) +
                "; if it is rank 0, its own message says why");
  }
  set_socket_options(fd.fd);
  return std::make_shared<ControlChannel>(process, std::vector<int>{fd.release()});
}

}  // namespace

std::shared_ptr<ControlChannel> ControlChannel::rendezvous(const ProcessInfo& process,
                                                           std::chrono::milliseconds timeout) {
  return process.rank == 0 ? accept_ranks(process, timeout) : connect_to_rank_0(process, timeout);
}

}  // namespace gemma4
