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

constexpr size_t kSentenceMost = size_t{64} << 10;

std::string name_of(int rank) { return "rank " + std::to_string(rank); }

std::string gone(int rank) { return name_of(rank) + " has ended before its time; its own message says why"; }

// A thread on which no signal is delivered: they are the program's other threads' business.
template <typename Body>
std::thread quiet_thread(const Body& body) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(body);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

std::vector<std::byte> sentence(int code, const std::string& why) {
  std::vector<std::byte> bytes(1 + std::min(why.size(), kSentenceMost - 1));
  bytes[0] = static_cast<std::byte>(code);
  std::memcpy(bytes.data() + 1, why.data(), bytes.size() - 1);
  return bytes;
}

}  // namespace

ControlChannel::ControlChannel(const ProcessInfo& process, std::vector<int> sockets)
    : process_(process), sockets_(std::move(sockets)), wake_(eventfd(0, EFD_CLOEXEC)) {
  if (wake_ < 0) throw Error("there is no descriptor left to watch the other processes with");
  watcher_ = quiet_thread([this] { watch(); });
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

void ControlChannel::throw_gone(int rank) {
  const std::lock_guard lock(mutex_);
  throw_failure(failed_ ? *failed_ : peek_failure(rank));
}

void ControlChannel::read(int from, void* to, size_t size) {
  for (size_t at = 0; at < size;) {
    const ssize_t got = recv(socket_of(from), static_cast<char*>(to) + at, size - at, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw_gone(from);
    at += static_cast<size_t>(got);
  }
}

void ControlChannel::write(int to, const void* from, size_t size) {
  for (size_t at = 0; at < size;) {
    const ssize_t sent = ::send(socket_of(to), static_cast<const char*>(from) + at, size - at, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) throw_gone(to);
    at += static_cast<size_t>(sent);
  }
}

void ControlChannel::send(int to, Message kind, std::span<const std::byte> bytes) {
  const std::lock_guard lock(sending_);
  const Header header = {static_cast<uint32_t>(kind), static_cast<uint32_t>(bytes.size())};
  CHECK(header.length == bytes.size());
  write(to, &header, sizeof(header));
  write(to, bytes.data(), bytes.size());
}

void ControlChannel::send_all(Message kind, std::span<const std::byte> bytes) {
  for (int to = 1; to < world(); ++to) send(to, kind, bytes);
}

ControlChannel::Failure ControlChannel::failure_of(int from, std::span<const std::byte> text) const {
  if (text.empty()) return {kExitDevice, gone(from)};
  Failure failure;
  failure.code = static_cast<int>(text[0]) == kExitBadInput ? kExitBadInput : kExitDevice;
  failure.why.assign(reinterpret_cast<const char*>(text.data()) + 1, text.size() - 1);
  if (!failure.why.starts_with("rank ")) failure.why = name_of(from) + ": " + failure.why;
  return failure;
}

// Of a message of that kind and at most that many bytes, or of kEnd where a call is waited for.
ControlChannel::Header ControlChannel::receive_header(int from, Message kind, size_t most) {
  Header header;
  read(from, &header, sizeof(header));
  if (header.kind == static_cast<uint32_t>(Message::kFailed)) {
    Bytes text(std::min<size_t>(header.length, kSentenceMost));
    read(from, text.data(), text.size());
    throw_failure(failure_of(from, text));
  }
  if (kind == Message::kCommand && header.kind == static_cast<uint32_t>(Message::kEnd)) return {header.kind, 0};
  if (header.kind == static_cast<uint32_t>(kind) && header.length <= most) return header;
  throw DeviceError(name_of(from) + " sent a message of kind " + std::to_string(header.kind) + " and " +
                    std::to_string(header.length) + " bytes where one of kind " +
                    std::to_string(static_cast<uint32_t>(kind)) + " and at most " + std::to_string(most) +
                    " was expected; do all ranks run the same program with the same options?");
}

void ControlChannel::receive(int from, Message kind, std::span<std::byte> bytes) {
  const Header header = receive_header(from, kind, bytes.size());
  if (header.length != bytes.size()) {
    throw DeviceError(name_of(from) + " sent " + std::to_string(header.length) + " bytes where " +
                      std::to_string(bytes.size()) + " were expected");
  }
  read(from, bytes.data(), bytes.size());
}

std::optional<ControlChannel::Bytes> ControlChannel::next_command() {
  const Header header = receive_header(0, Message::kCommand, kCommandMost);
  if (header.kind == static_cast<uint32_t>(Message::kEnd)) {
    const std::lock_guard lock(mutex_);
    ended_ = true;  // from now on rank 0 may go
    return std::nullopt;
  }
  Bytes bytes(header.length);
  read(0, bytes.data(), bytes.size());
  return bytes;
}

void ControlChannel::wait_ready() {
  for (int from = 1; from < world(); ++from) receive(from, Message::kReady, {});
}

ControlChannel::Bytes ControlChannel::gather(Message kind, std::span<const std::byte> mine) {
  const size_t size = mine.size();
  Bytes all(size * static_cast<size_t>(world()));
  if (rank() > 0) {
    send(0, kind, mine);
    receive(0, kind, all);
    return all;
  }
  std::ranges::copy(mine, all.begin());
  for (int from = 1; from < world(); ++from) {
    receive(from, kind, std::span(all).subspan(size * static_cast<size_t>(from), size));
  }
  send_all(kind, all);
  return all;
}

// Ends.

void ControlChannel::end() {
  {
    const std::lock_guard lock(mutex_);
    const bool heard = rank() == 0 || ended_;  // whoever goes before rank 0 has said so has failed
    if (failed_ || answered_ || !heard) return;
    answered_ = ended_ = true;
  }
  try {
    if (rank() > 0) return send(0, Message::kEnd, {});
    send_all(Message::kEnd, {});
    const timeval limit = {kPatience.count(), 0};
    for (int from = 1; from < world(); ++from) {
      setsockopt(socket_of(from), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
      receive(from, Message::kEnd, {});
    }
  } catch (const Error&) {
    // It ended with a reason of its own, which it has told.
  }
}

// The others are told, unless one of them does not take a message that is under way, and no call waits any longer.
void ControlChannel::lose(const Failure& failure, int directions) {
  {
    const std::lock_guard lock(mutex_);
    if (ended_ || failed_) return;
    failed_ = failure;
  }
  // By the wall clock, because ThreadSanitizer does not know how to wait for a mutex by the other one.
  const std::unique_lock lock(sending_, std::chrono::system_clock::now() + std::chrono::seconds(1));
  const Bytes text = sentence(failure.code, failure.why);
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

// What comes in is still taken: refusing it would make the others' systems drop the sentence unread.
void ControlChannel::fail(int code, const std::string& why) { lose({code, why}, SHUT_WR); }

// Watching.

void ControlChannel::on_lost(std::function<void(const std::string&)> then) {
  const std::lock_guard lock(calling_);
  then_ = std::move(then);
  if (lost_why_ && then_) then_(*lost_why_);  // it came first
}

// What `from` said before it ended, should nobody have read it: over NCCL nobody waits for messages.
ControlChannel::Failure ControlChannel::peek_failure(int from) const {
  Header header;
  Bytes bytes(sizeof(header) + kSentenceMost);
  const ssize_t got = recv(socket_of(from), bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  const Failure silent = {kExitDevice, gone(from)};
  if (got < static_cast<ssize_t>(sizeof(header))) return silent;
  std::memcpy(&header, bytes.data(), sizeof(header));
  const size_t here = static_cast<size_t>(got) - sizeof(header);
  if (header.kind != static_cast<uint32_t>(Message::kFailed) || header.length > here) return silent;
  return failure_of(from, std::span(bytes).subspan(sizeof(header), header.length));
}

// The rank whose connection has ended; nothing where this process is done.
std::optional<int> ControlChannel::wait_for_loss() const {
  std::vector<pollfd> watched = {{wake_, POLLIN, 0}};
  for (const int fd : sockets_) watched.push_back({fd, POLLRDHUP, 0});  // poll() passes over -1
  while (poll(watched.data(), watched.size(), -1) < 0 && errno == EINTR) {
  }
  if (watched[0].revents != 0) return std::nullopt;
  for (size_t i = 1; i < watched.size(); ++i) {
    if (watched[i].revents != 0) return static_cast<int>(i) - 1;
  }
  return std::nullopt;
}

void ControlChannel::watch() {
  const std::optional<int> from = wait_for_loss();
  if (!from) return;
  lose(peek_failure(*from), SHUT_RDWR);
  Failure failure;
  {
    const std::lock_guard lock(mutex_);
    if (!failed_) return;  // this was the end
    failure = *failed_;
  }
  std::thread telling = quiet_thread([&] {  // which may wait for ever, too
    const std::lock_guard lock(calling_);
    lost_why_ = failure.why;
    if (then_) then_(failure.why);
  });
  pollfd woken = {wake_, POLLIN, 0};
  const auto patience = std::chrono::milliseconds(kPatience).count();
  if (poll(&woken, 1, static_cast<int>(patience)) != 0) return telling.join();
  std::fprintf(stderr, "gemma4: %s\n", failure.why.c_str());
  _exit(failure.code);
}

}  // namespace gemma4
