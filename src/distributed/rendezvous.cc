// ControlChannel::rendezvous(): rank 0 listens; each other rank opens its connections and proves that it is of the same
// job (handshake.h). All connections are heard at the same time, so a silent stranger delays nobody.
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <ranges>
#include <thread>
#include <utility>

#include "base/check.h"
#include "distributed/control_channel.h"
#include "distributed/handshake.h"
#include "distributed/rendezvous_token.h"

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kHandshakeTimeout{2};
constexpr size_t kArrivalsMost = 256;  // connections in the middle of the handshake; the oldest one makes way
constexpr int kWarningsMost = 10;      // about wrong tokens

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

bool is_loopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    return ntohl(reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr) >> 24 == 127;
  }
  return address->sa_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
}

[[noreturn]] void cannot_listen(const ProcessInfo& process, const std::string& why) {
  throw Error("rank 0 cannot listen at " + where(process) + ": " + why +
              "; choose another port by the variable MASTER_PORT, for all processes");
}

// Binds the loopback address if that is rank 0's. Otherwise it binds all addresses, because the given one may be a name
// that only other hosts resolve to this one.
Descriptor bind_to(const ProcessInfo& process) {
  std::string why;
  auto found = resolve(process.address.c_str(), process.port, &why);
  if (!found || !is_loopback(found->ai_addr)) found = resolve(nullptr, process.port, &why);
  for (const addrinfo* at = found.get(); at != nullptr; at = at->ai_next) {
    Descriptor fd = socket_for(*at);
    if (fd.fd < 0) continue;
    set(fd.fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (at->ai_family == AF_INET6) set(fd.fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    if (bind(fd.fd, at->ai_addr, at->ai_addrlen) == 0) return fd;
    why = std::strerror(errno);
  }
  cannot_listen(process, why);
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

struct Sockets {
  explicit Sockets(int count) : fds(static_cast<size_t>(count), -1) {}
  ~Sockets() {
    for (const int fd : fds) Descriptor{fd};
  }
  std::vector<int> fds;
};

std::string address_of(int fd) {
  sockaddr_storage there = {};
  socklen_t size = sizeof(there);
  char host[NI_MAXHOST];
  auto* address = reinterpret_cast<sockaddr*>(&there);
  const bool found = getpeername(fd, address, &size) == 0 &&
                     getnameinfo(address, size, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) == 0;
  return found ? host : "an unknown address";
}

// Rank 0's end of the rendezvous.
class Acceptor {
 public:
  explicit Acceptor(const ProcessInfo& process)
      : process_(process),
        listener_(bind_to(process)),
        token_(process),
        messages_(process.world),
        beats_(process.world) {
    // The others look for the token once they are connected, so it is there before.
    if (listen(listener_.fd, 128) != 0) cannot_listen(process, std::strerror(errno));
  }

  std::shared_ptr<ControlChannel> accept_ranks(std::chrono::milliseconds timeout);

 private:
  struct Arrival {
    Descriptor fd;
    HandshakeAcceptor handshake;
    Clock::time_point end;
  };

  bool complete() const {
    return std::ranges::count(messages_.fds, -1) == 1 && std::ranges::count(beats_.fds, -1) == 1;
  }
  void wait_for_events(std::chrono::milliseconds most);
  void accept_connection();
  bool hear(Arrival& arrival);
  void take_seat(Arrival& arrival);
  void answer_all() const;

  const ProcessInfo& process_;
  Descriptor listener_;
  const OfferedToken token_;
  Sockets messages_, beats_;
  std::vector<Arrival> arrivals_;
  std::vector<std::pair<int, std::string>> answers_;  // to the ranks that are here
  int warnings_ = 0;
};

void Acceptor::accept_connection() {
  Descriptor fd(accept4(listener_.fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd.fd < 0) return std::this_thread::sleep_for(std::chrono::milliseconds(10));  // no descriptor is left
  if (arrivals_.size() == kArrivalsMost) arrivals_.erase(arrivals_.begin());
  arrivals_.push_back(
      {std::move(fd), HandshakeAcceptor(token_.text(), random_nonce()), Clock::now() + kHandshakeTimeout});
}

// Receives what has come. False: this connection's handshake is over.
bool Acceptor::hear(Arrival& arrival) {
  char bytes[256];
  const ssize_t got = recv(arrival.fd.fd, bytes, sizeof(bytes), MSG_DONTWAIT);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (got == 0) return false;
  const std::string reply = arrival.handshake.take({bytes, static_cast<size_t>(got)});
  if (!reply.empty() && send(arrival.fd.fd, reply.data(), reply.size(), MSG_NOSIGNAL) < 0) return false;
  switch (arrival.handshake.state()) {
    case HandshakeAcceptor::State::kHello:
    case HandshakeAcceptor::State::kProof:
      return true;
    case HandshakeAcceptor::State::kStranger:
      return false;
    case HandshakeAcceptor::State::kWrongToken:
      if (warnings_++ >= kWarningsMost) return false;
      std::fprintf(stderr, "gemma4: a connection from %s was turned away: it does not know the token of this job\n",
                   address_of(arrival.fd.fd).c_str());
      return false;
    case HandshakeAcceptor::State::kTrusted:
      take_seat(arrival);
      return false;
  }
  return false;
}

void Acceptor::take_seat(Arrival& arrival) {
  const Hello& hello = arrival.handshake.hello();
  const std::string name = "rank " + std::to_string(hello.rank);
  if (hello.world != static_cast<uint32_t>(process_.world)) {
    throw Error(name + " says that there are " + std::to_string(hello.world) +
                " processes, and rank 0 that there are " + std::to_string(process_.world));
  }
  std::vector<int>& seats = hello.connection == ConnectionUse::kBeats ? beats_.fds : messages_.fds;
  if (hello.rank == 0 || hello.rank >= hello.world || seats[hello.rank] >= 0) {
    throw Error("two processes say that they are " + name);
  }
  const int fd = seats[hello.rank] = arrival.fd.release();
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  set_socket_options(fd);
  answers_.emplace_back(fd, arrival.handshake.answer());
}

// Handles what the listener, the new connections and the ranks that are here have to say.
void Acceptor::wait_for_events(std::chrono::milliseconds most) {
  std::vector<pollfd> watched = {{listener_.fd, POLLIN, 0}};
  for (const Arrival& arrival : arrivals_) watched.push_back({arrival.fd.fd, POLLIN, 0});
  for (const int fd : messages_.fds) watched.push_back({fd, POLLRDHUP, 0});  // poll() ignores -1
  if (poll(watched.data(), watched.size(), static_cast<int>(most.count())) < 0) return;
  const size_t seats = 1 + arrivals_.size();
  for (size_t i = seats; i < watched.size(); ++i) {
    if (watched[i].revents != 0) {
      throw DeviceError("rank " + std::to_string(i - seats) + " has ended before all ranks were connected");
    }
  }
  std::vector<Arrival> stay;
  for (size_t i = 0; i < arrivals_.size(); ++i) {
    const bool stays = watched[i + 1].revents == 0 || hear(arrivals_[i]);
    if (stays && Clock::now() < arrivals_[i].end) stay.push_back(std::move(arrivals_[i]));
  }
  arrivals_ = std::move(stay);
  if (watched[0].revents != 0) accept_connection();
}

void Acceptor::answer_all() const {
  for (const auto& [fd, answer] : answers_) (void)!send(fd, answer.data(), answer.size(), MSG_NOSIGNAL);
}

std::shared_ptr<ControlChannel> Acceptor::accept_ranks(std::chrono::milliseconds timeout) {
  constexpr std::chrono::milliseconds kTick{100};  // to disconnect those who say nothing
  const Clock::time_point end = Clock::now() + timeout;
  while (!complete()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    if (left.count() <= 0) {
      throw Error(missing_ranks(messages_.fds) + " of " + std::to_string(process_.world) +
                  " did not come to rank 0 at " + where(process_) + " within " +
                  std::to_string(timeout.count() / 1000) + " s");
    }
    wait_for_events(arrivals_.empty() ? left : std::min(left, kTick));
  }
  answer_all();
  return std::make_shared<ControlChannel>(process_, std::exchange(messages_.fds, {}), std::exchange(beats_.fds, {}));
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

// Another rank's end of one connection.
class Caller {
 public:
  Caller(Descriptor fd, const std::string& token, const ProcessInfo& process, ConnectionUse connection)
      : fd_(std::move(fd)), handshake_(token, hello_of(process, connection)) {}

  bool introduce() {
    if (!say(handshake_.hello())) return false;
    const std::string proof = handshake_.prove(hear(sizeof(Challenge)));
    return !proof.empty() && say(proof);
  }
  bool is_accepted() { return handshake_.accepts(hear(sizeof(Proof))); }
  void wait_at_most(std::chrono::milliseconds wait) const { limit_waits(fd_.fd, wait); }
  int release() {
    set_socket_options(fd_.fd);
    return fd_.release();
  }

 private:
  static Hello hello_of(const ProcessInfo& process, ConnectionUse connection) {
    Hello hello;
    hello.rank = static_cast<uint32_t>(process.rank), hello.world = static_cast<uint32_t>(process.world);
    hello.connection = connection;
    hello.nonce = random_nonce();
    return hello;
  }
  bool say(const std::string& bytes) const {
    return send(fd_.fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  std::string hear(size_t size) const {  // empty if not as many bytes come
    std::string bytes(size, '\0');
    return recv(fd_.fd, bytes.data(), size, MSG_WAITALL) == static_cast<ssize_t>(size) ? bytes : "";
  }

  Descriptor fd_;
  HandshakeInitiator handshake_;
};

Descriptor connect_until(Clock::time_point end, const ProcessInfo& process, std::chrono::milliseconds timeout) {
  std::string why;
  for (;;) {
    Descriptor fd = connect_once(process, &why);
    if (fd.fd >= 0) return fd;
    if (Clock::now() > end) {
      throw Error("rank 0 is not at " + where(process) + " (" + why + "), for " +
                  std::to_string(timeout.count() / 1000) + " s");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

std::shared_ptr<ControlChannel> connect_to_rank_0(const ProcessInfo& process, std::chrono::milliseconds timeout) {
  const Clock::time_point end = Clock::now() + timeout;
  Descriptor first = connect_until(end, process, timeout);
  const std::string token = find_token(process);
  Caller messages(std::move(first), token, process, ConnectionUse::kMessages);
  bool taken = messages.introduce();
  Caller beats(taken ? connect_until(end, process, timeout) : Descriptor(-1), token, process, ConnectionUse::kBeats);
  taken = taken && beats.introduce();
  // Rank 0 answers when all ranks are connected, and its time limit ends before this one.
  for (Caller* caller : {&messages, &beats}) {
    caller->wait_at_most(timeout + std::chrono::seconds(5));
    taken = taken && caller->is_accepted();
  }
  if (!taken) {
    throw Error("what listens at " + where(process) + " did not take this process as rank " +
                std::to_string(process.rank) + " of " + std::to_string(process.world) +
                "; if it is rank 0, its own message says why");
  }
  const std::vector<int> first_fd = {messages.release()}, second_fd = {beats.release()};
  return std::make_shared<ControlChannel>(process, first_fd, second_fd);
}

}  // namespace

std::shared_ptr<ControlChannel> ControlChannel::rendezvous(const ProcessInfo& process,
                                                           std::chrono::milliseconds timeout) {
  return process.rank == 0 ? Acceptor(process).accept_ranks(timeout) : connect_to_rank_0(process, timeout);
}

}  // namespace gemma4
