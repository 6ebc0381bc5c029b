#include "distributed/control_channel.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "base/check.h"

namespace gemma4 {
namespace {

constexpr size_t kFailureBytesMax = size_t{64} << 10;

std::string name_of(int rank) { return "rank " + std::to_string(rank); }

std::string disconnect_message(int rank) {
  return name_of(rank) + " has ended before its time; its own message says why";
}

// Starts a thread that receives no signals: other threads of the program handle them.
template <typename Body>
std::thread thread_without_signals(const Body& body) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(body);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

bool unread(int fd) {
  char byte;
  return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

std::vector<std::byte> failure_payload(int code, const std::string& why) {
  std::vector<std::byte> bytes(1 + std::min(why.size(), kFailureBytesMax - 1));
  bytes[0] = static_cast<std::byte>(code);
  std::memcpy(bytes.data() + 1, why.data(), bytes.size() - 1);
  return bytes;
}

}  // namespace

ControlChannel::ControlChannel(const ProcessInfo& process, std::vector<int> sockets, std::vector<int> beats)
    : process_(process),
      sockets_(std::move(sockets)),
      beats_(std::move(beats)),
      silence_most_(process.rank_timeout),
      wake_(eventfd(0, EFD_CLOEXEC)) {
  if (wake_ < 0) throw Error("there is no descriptor left to watch the other processes with");
  watcher_ = thread_without_signals([this] { watch_peers(); });
}

ControlChannel::~ControlChannel() {
  const uint64_t one = 1;
  if (::write(wake_, &one, sizeof(one)) != sizeof(one)) std::abort();  // an eventfd takes it
  watcher_.join();
  for (const int fd : sockets_) {
    if (fd >= 0) close(fd);
  }
  close(wake_);
}

// Messages.

void ControlChannel::throw_failure(const Failure& failure) {
  if (failure.code == kExitBadInput) throw Error(failure.why);
  throw DeviceError(failure.why);
}

void ControlChannel::throw_disconnected(int rank) {
  const MutexLock lock(mutex_);
  throw_failure(failed_ ? *failed_ : peek_failure(rank));
}

void ControlChannel::throw_if_failed() {
  const MutexLock lock(mutex_);
  if (failed_) throw_failure(*failed_);
}

void ControlChannel::read(int from, void* to, size_t size) {
  for (size_t at = 0; at < size;) {
    const ssize_t got = recv(socket_of(from), static_cast<char*>(to) + at, size - at, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw_disconnected(from);
    at += static_cast<size_t>(got);
  }
}

void ControlChannel::write(int to, const void* from, size_t size) {
  for (size_t at = 0; at < size;) {
    const ssize_t sent = ::send(socket_of(to), static_cast<const char*>(from) + at, size - at, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) throw_disconnected(to);
    at += static_cast<size_t>(sent);
  }
}

void ControlChannel::send(int to, Message type, std::span<const std::byte> bytes) {
  const std::lock_guard lock(send_mutex_);
  const Header header = {static_cast<uint32_t>(type), static_cast<uint32_t>(bytes.size())};
  CHECK(header.length == bytes.size());
  write(to, &header, sizeof(header));
  write(to, bytes.data(), bytes.size());
}

void ControlChannel::send_all(Message type, std::span<const std::byte> bytes) {
  for (int to = 1; to < world(); ++to) send(to, type, bytes);
}

ControlChannel::Failure ControlChannel::failure_of(int from, std::span<const std::byte> text) const {
  if (text.empty()) return {kExitDevice, disconnect_message(from)};
  Failure failure;
  failure.code = static_cast<int>(text[0]) == kExitBadInput ? kExitBadInput : kExitDevice;
  failure.why.assign(reinterpret_cast<const char*>(text.data()) + 1, text.size() - 1);
  if (!failure.why.starts_with("rank ")) failure.why = name_of(from) + ": " + failure.why;
  return failure;
}

// The header of a message of this type with at most `most` bytes. Where a command is expected, kEnd is accepted too.
ControlChannel::Header ControlChannel::receive_header(int from, Message type, size_t most) {
  Header header;
  read(from, &header, sizeof(header));
  if (header.type == static_cast<uint32_t>(Message::kFailed)) {
    Bytes text(std::min<size_t>(header.length, kFailureBytesMax));
    read(from, text.data(), text.size());
    throw_failure(failure_of(from, text));
  }
  if (type == Message::kCommand && header.type == static_cast<uint32_t>(Message::kEnd)) return {header.type, 0};
  if (header.type == static_cast<uint32_t>(type) && header.length <= most) return header;
  throw DeviceError(name_of(from) + " sent a message of kind " + std::to_string(header.type) + " and " +
                    std::to_string(header.length) + " bytes where one of kind " +
                    std::to_string(static_cast<uint32_t>(type)) + " and at most " + std::to_string(most) +
                    " was expected; do all ranks run the same program with the same options?");
}

void ControlChannel::receive(int from, Message type, std::span<std::byte> bytes) {
  const Header header = receive_header(from, type, bytes.size());
  if (header.length != bytes.size()) {
    throw DeviceError(name_of(from) + " sent " + std::to_string(header.length) + " bytes where " +
                      std::to_string(bytes.size()) + " were expected");
  }
  read(from, bytes.data(), bytes.size());
}

std::optional<ControlChannel::Bytes> ControlChannel::next_command() {
  const Header header = receive_header(0, Message::kCommand, kCommandBytesMax);
  if (header.type == static_cast<uint32_t>(Message::kEnd)) {
    const MutexLock lock(mutex_);
    ended_ = true;  // from now on rank 0 may disconnect
    return std::nullopt;
  }
  Bytes bytes(header.length);
  read(0, bytes.data(), bytes.size());
  return bytes;
}

void ControlChannel::wait_ready() {
  for (int from = 1; from < world(); ++from) receive(from, Message::kReady, {});
}

ControlChannel::Bytes ControlChannel::gather(Message type, std::span<const std::byte> mine) {
  const size_t size = mine.size();
  Bytes all(size * static_cast<size_t>(world()));
  if (rank() > 0) {
    send(0, type, mine);
    receive(0, type, all);
    return all;
  }
  std::ranges::copy(mine, all.begin());
  for (int from = 1; from < world(); ++from) {
    receive(from, type, std::span(all).subspan(size * static_cast<size_t>(from), size));
  }
  send_all(type, all);
  return all;
}

// Ends.

void ControlChannel::end() {
  {
    const MutexLock lock(mutex_);
    const bool end_received = rank() == 0 || ended_;  // a rank that leaves before kEnd has failed
    if (failed_ || end_sent_ || !end_received) return;
    end_sent_ = ended_ = true;
  }
  try {
    if (rank() > 0) return send(0, Message::kEnd, {});
    send_all(Message::kEnd, {});
    const timeval limit = {kAbortTimeout.count(), 0};
    for (int from = 1; from < world(); ++from) {
      setsockopt(socket_of(from), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
      receive(from, Message::kEnd, {});
    }
  } catch (const Error&) {
    // That process has failed and has sent its own reason.
  }
}

// Sends the failure to all connected processes and shuts the connections down, so no call waits any longer. If another
// thread is stuck in send(), the message is left out.
void ControlChannel::abort_peers(const Failure& failure, int directions) {
  {
    const MutexLock lock(mutex_);
    if (ended_ || failed_) return;
    failed_ = failure;
  }
  // The system clock, because ThreadSanitizer does not support waiting for a mutex with the steady clock.
  const std::unique_lock lock(send_mutex_, std::chrono::system_clock::now() + std::chrono::seconds(1));
  const Bytes text = failure_payload(failure.code, failure.why);
  const Header header = {static_cast<uint32_t>(Message::kFailed), static_cast<uint32_t>(text.size())};
  Bytes message(sizeof(header) + text.size());
  std::memcpy(message.data(), &header, sizeof(header));
  std::memcpy(message.data() + sizeof(header), text.data(), text.size());
  for (const int fd : sockets_) {
    if (fd < 0) continue;
    if (lock) (void)!::send(fd, message.data(), message.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(fd, directions);
  }
}

// Only the write side is shut down. If the read side were too, a message in flight would be answered with RST, and the
// other host would drop the unread failure message.
void ControlChannel::fail(int code, const std::string& why) { abort_peers({code, why}, SHUT_WR); }

// Watching.

void ControlChannel::on_peer_lost(std::function<void(const std::string&)> callback) {
  const MutexLock lock(callback_mutex_);
  peer_lost_callback_ = std::move(callback);
  if (lost_reason_ && peer_lost_callback_)
    peer_lost_callback_(*lost_reason_);  // the process ended before the callback was set
}

// The failure that `from` sent before it ended, if nobody has read it: while NCCL runs, nobody reads messages.
ControlChannel::Failure ControlChannel::peek_failure(int from) const {
  Header header;
  Bytes bytes(sizeof(header) + kFailureBytesMax);
  const ssize_t got = recv(socket_of(from), bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  const Failure silent = {kExitDevice, disconnect_message(from)};
  if (got < static_cast<ssize_t>(sizeof(header))) return silent;
  std::memcpy(&header, bytes.data(), sizeof(header));
  const size_t here = static_cast<size_t>(got) - sizeof(header);
  if (header.type != static_cast<uint32_t>(Message::kFailed) || header.length > here) return silent;
  return failure_of(from, std::span(bytes).subspan(sizeof(header), header.length));
}

void ControlChannel::limit_silence(std::chrono::milliseconds most) {
  if (most < silence_most_.load()) silence_most_ = most;
}

std::optional<ControlChannel::Failure> ControlChannel::silent_peer() {
  const std::chrono::milliseconds most = silence_most_;
  const std::optional<int> silent = beats_.beat(most);
  if (!silent) return std::nullopt;
  char seconds[32];
  std::snprintf(seconds, sizeof(seconds), "%g", static_cast<double>(most.count()) / 1000);
  return Failure{kExitDevice, name_of(*silent) + " has not answered for " + seconds +
                                  " s: it is stopped, or its host or the network does not work"};
}

// Waits until a rank's connection has ended or a rank is silent for too long; nothing if this channel is being
// destroyed.
std::optional<ControlChannel::Failure> ControlChannel::wait_for_loss() {
  std::vector<pollfd> watched = {{wake_, POLLIN, 0}};
  for (const int fd : sockets_) watched.push_back({fd, POLLRDHUP, 0});  // poll() ignores -1
  for (;;) {
    const auto wait = beats_.empty() ? std::chrono::milliseconds(-1) : Heartbeats::interval(silence_most_);
    const int events = poll(watched.data(), watched.size(), static_cast<int>(wait.count()));
    if (events < 0 && errno != EINTR) return std::nullopt;
    if (events <= 0) {
      if (std::optional<Failure> failure = silent_peer()) return failure;
      continue;
    }
    if (watched[0].revents != 0) return std::nullopt;
    for (size_t i = 1; i < watched.size(); ++i) {
      if (watched[i].revents == 0) continue;
      // Messages that nobody has read yet may lie before the failure.
      const int from = static_cast<int>(i) - 1;
      for (int wait = 0; wait < 50 && unread(watched[i].fd); ++wait) {
        if (Failure failure = peek_failure(from); failure.why != disconnect_message(from)) return failure;
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
      return peek_failure(from);
    }
  }
}

void ControlChannel::watch_peers() {
  const std::optional<Failure> loss = wait_for_loss();
  if (!loss) return;
  abort_peers(*loss, SHUT_RDWR);
  Failure failure;
  {
    const MutexLock lock(mutex_);
    if (!failed_) return;  // an end in good order
    failure = *failed_;
  }
  std::thread notifier = thread_without_signals([&] {  // the callback may block for ever
    const MutexLock lock(callback_mutex_);
    lost_reason_ = failure.why;
    if (peer_lost_callback_) peer_lost_callback_(failure.why);
  });
  pollfd woken = {wake_, POLLIN, 0};
  const auto timeout = std::chrono::milliseconds(kAbortTimeout).count();
  if (poll(&woken, 1, static_cast<int>(timeout)) != 0) return notifier.join();
  std::fprintf(stderr, "gemma4: %s\n", failure.why.c_str());
  _exit(failure.code);
}

}  // namespace gemma4
