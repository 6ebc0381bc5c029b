// ControlChannel: how the processes that compute one model together exchange messages: a star of TCP connections around
// rank 0, which rendezvous() opens once at the start. It carries rank 0's commands to the other ranks, the data that
// NCCL needs to start, and, for tensors in host memory, their sums (host_collectives.h). One thread at a time sends and
// receives. Another thread watches the connections. If a process ends too early or is silent for too long, it ends the
// others: calls that wait for it throw DeviceError.
#pragma once

#include <atomic>
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

#include "base/mutex.h"
#include "distributed/heartbeats.h"

namespace gemma4 {

// Which rank this process is, and where rank 0 listens.
struct ProcessInfo {
  int rank = 0, world = 1;
  int local_rank = 0, local_world = 1;  // among the processes of this host
  std::string address = "127.0.0.1";
  int port = 0;
  std::string token;                               // of the job (rendezvous_token.h); empty: from rank 0's file
  std::chrono::milliseconds rank_timeout{60'000};  // a rank that is silent for so long has failed
};

class ControlChannel {
 public:
  using Bytes = std::vector<std::byte>;
  // kFailed: an exit code and a sentence, in place of the expected message. kEnd: rank 0 has no more commands; the
  // other ranks answer with kEnd.
  enum class Message : uint32_t { kReady = 1, kNcclId, kPeers, kCommand, kTensor, kFailed, kEnd, kMemory };
  static constexpr size_t kCommandBytesMax = size_t{256} << 20;  // bytes of one command

  // Returns when all processes are connected. Other programs that connect are turned away. Throws Error if the
  // processes contradict each other or one does not connect.
  static std::shared_ptr<ControlChannel> rendezvous(const ProcessInfo& process, std::chrono::milliseconds timeout);

  // `sockets`: on rank 0, one for each rank and -1 for itself; on the others, the one to rank 0. `beats`: the same for
  // heartbeats, or none.
  ControlChannel(const ProcessInfo& process, std::vector<int> sockets, std::vector<int> beats = {});
  ~ControlChannel();
  ControlChannel(const ControlChannel&) = delete;
  ControlChannel& operator=(const ControlChannel&) = delete;

  const ProcessInfo& process() const { return process_; }
  int rank() const { return process_.rank; }
  int world() const { return process_.world; }

  // Messages between rank 0 and one other rank. If the other process has ended, these throw the failure that it sent,
  // or DeviceError.
  void send(int to, Message type, std::span<const std::byte> bytes);
  void send_all(Message type, std::span<const std::byte> bytes);     // to all other ranks
  void receive(int from, Message type, std::span<std::byte> bytes);  // a message of exactly this size
  std::optional<Bytes> next_command();                               // from rank 0; nothing after kEnd

  void send_ready() { send(0, Message::kReady, {}); }
  void wait_ready();  // until all others have called send_ready()
  // An all-gather: all ranks call it with `mine` of one size; returns those of all ranks, in their order.
  Bytes gather(Message type, std::span<const std::byte> mine);

  // Sets the callback for a process that ended too early, in place of the previous one. It runs on a thread of its own,
  // or at once if the process has already ended. If this process still runs kAbortTimeout later, it prints a sentence
  // and exits, because a call into a driver may wait for ever.
  void on_peer_lost(std::function<void(const std::string& why)> callback);
  static constexpr std::chrono::seconds kAbortTimeout{10};

  // Lowers the time for which a rank may be silent.
  void limit_silence(std::chrono::milliseconds most);
  void throw_if_failed() EXCLUDES(mutex_);  // the failure that ended this channel, if one did

  // Ends the other processes with this exit code (base/check.h). The first reason counts.
  void fail(int code, const std::string& why);
  // Closes the channel in good order. Rank 0 sends kEnd to the others and waits for their answers. On the others it
  // sends the answer, and does nothing unless next_command() has received kEnd.
  void end();

 private:
  struct Header {
    uint32_t type, length;
  };
  struct Failure {
    int code = 0;
    std::string why;
  };

  int socket_of(int rank) const { return sockets_[static_cast<size_t>(rank)]; }
  void read(int from, void* to, size_t size);
  void write(int to, const void* from, size_t size);
  Header receive_header(int from, Message type, size_t most);
  [[noreturn]] static void throw_failure(const Failure& failure);
  [[noreturn]] void throw_disconnected(int rank) EXCLUDES(mutex_);
  Failure failure_of(int from, std::span<const std::byte> text) const;
  Failure peek_failure(int from) const;
  std::optional<Failure> silent_peer();
  std::optional<Failure> wait_for_loss();
  void watch_peers() EXCLUDES(mutex_, callback_mutex_);
  void abort_peers(const Failure& failure, int directions) EXCLUDES(mutex_);

  const ProcessInfo process_;
  std::vector<int> sockets_;
  Heartbeats beats_;  // the watching thread's
  std::atomic<std::chrono::milliseconds> silence_most_;
  int wake_ = -1;                // an eventfd that ends the watching thread
  std::timed_mutex send_mutex_;  // one message at a time; no Mutex, because abort_peers() stops waiting for it
  Mutex mutex_;
  bool ended_ GUARDED_BY(mutex_) = false;     // kEnd was sent or received, so a process may disconnect
  bool end_sent_ GUARDED_BY(mutex_) = false;  // end() was called
  std::optional<Failure> failed_ GUARDED_BY(mutex_);
  Mutex callback_mutex_;  // held while peer_lost_callback_ runs
  std::function<void(const std::string&)> peer_lost_callback_ GUARDED_BY(callback_mutex_);
  std::optional<std::string> lost_reason_ GUARDED_BY(callback_mutex_);
  std::thread watcher_;
};

}  // namespace gemma4
