// ControlChannel: how the processes that compute one model together talk: a star of TCP connections around rank 0, made
// once at the start (rendezvous()). It carries rank 0's calls to the others, what NCCL needs to begin, and, where
// tensors lie in the host's memory, their sums (host_collectives.h). One thread at a time sends and receives; another
// watches that all processes are there. A process that ends before its time ends the others: what waits for it throws
// DeviceError.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

namespace gemma4 {

// Which of the processes this one is, and where rank 0 listens.
struct ProcessInfo {
  int rank = 0, world = 1;
  int local_rank = 0, local_world = 1;  // among those of this host
  std::string address = "127.0.0.1";
  int port = 0;
};

class ControlChannel {
 public:
  using Bytes = std::vector<std::byte>;
  // kFailed: an exit code and a sentence, instead of what was expected. kEnd: rank 0 has no more calls, and the answer.
  enum class Message : uint32_t { kReady = 1, kNcclId, kPeers, kCommand, kTensor, kFailed, kEnd };
  static constexpr size_t kCommandMost = size_t{256} << 20;  // bytes of one call

  // Returns when all processes have come. Throws Error where they contradict each other or one stays away.
  static std::shared_ptr<ControlChannel> rendezvous(const ProcessInfo& process, std::chrono::milliseconds patience);

  // `sockets`: by rank and -1 for itself on rank 0; elsewhere the one to rank 0.
  ControlChannel(const ProcessInfo& process, std::vector<int> sockets);
  ~ControlChannel();
  ControlChannel(const ControlChannel&) = delete;
  ControlChannel& operator=(const ControlChannel&) = delete;

  const ProcessInfo& process() const { return process_; }
  int rank() const { return process_.rank; }
  int world() const { return process_.world; }

  // Between rank 0 and another one. All throw where the other has ended: what it said, or DeviceError.
  void send(int to, Message kind, std::span<const std::byte> bytes);
  void send_all(Message kind, std::span<const std::byte> bytes);     // to all but itself
  void receive(int from, Message kind, std::span<std::byte> bytes);  // a message of exactly that size
  std::optional<Bytes> next_command();                               // from rank 0; nothing at the end

  void send_ready() { send(0, Message::kReady, {}); }
  void wait_ready();  // for send_ready() of all others
  // Called by all: every one's `mine`, of one size, in the order of the ranks.
  Bytes gather(Message kind, std::span<const std::byte> mine);

  // Called when a process has ended before its time, on a thread of its own or at once if that was before; not any more
  // when another has been set. This process, if it is still there kPatience later, is ended with a sentence: a driver's
  // call may wait for ever.
  void on_lost(std::function<void(const std::string& why)> then);
  static constexpr std::chrono::seconds kPatience{10};

  // Ends the others: they end with this exit code (base/check.h). The first reason counts.
  void fail(int code, const std::string& why);
  // All is done: on rank 0 tells the others and waits until each has answered; elsewhere is that answer, and nothing as
  // long as next_command() has not heard the end.
  void end();

 private:
  struct Header {
    uint32_t kind, length;
  };
  struct Failure {
    int code = 0;
    std::string why;
  };

  int socket_of(int rank) const { return sockets_[static_cast<size_t>(rank)]; }
  void read(int from, void* to, size_t size);
  void write(int to, const void* from, size_t size);
  Header receive_header(int from, Message kind, size_t most);
  [[noreturn]] static void throw_failure(const Failure& failure);
  [[noreturn]] void throw_gone(int rank);
  Failure failure_of(int from, std::span<const std::byte> text) const;
  Failure peek_failure(int from) const;
  std::optional<int> wait_for_loss() const;
  void watch();
  void lose(const Failure& failure, int directions);

  const ProcessInfo process_;
  std::vector<int> sockets_;
  int wake_ = -1;             // an eventfd: the watching thread is to end
  std::timed_mutex sending_;  // one message at a time
  std::mutex mutex_;
  bool ended_ = false;             // under mutex_: whoever goes now may
  bool answered_ = false;          // under mutex_: end() has been called, once
  std::optional<Failure> failed_;  // under mutex_
  std::mutex calling_;             // held while then_ runs
  std::function<void(const std::string&)> then_;
  std::optional<std::string> lost_why_;  // under calling_
  std::thread watcher_;
};

}  // namespace gemma4
