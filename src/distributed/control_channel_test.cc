// ControlChannel: rendezvous, failures and ends, with a thread in place of each process. Also sums over it, which must
// be equal to the bit to those within one process.
#include "distributed/control_channel.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <thread>

#include "backend/ranks.h"
#include "distributed/free_port_testing.h"
#include "distributed/process_group.h"
#include "distributed/stranger_testing.h"

namespace gemma4 {
namespace {

using std::chrono::seconds;

ProcessInfo process(int rank, int world, int port) { return {rank, world, rank, world, "127.0.0.1", port}; }

// Runs work(rank, channel) on a thread for each rank. Returns what each one threw, or "".
template <typename Work>
std::vector<std::string> run_ranks(int world, const Work& work) {
  const int port = free_port();
  std::vector<std::string> thrown(static_cast<size_t>(world));
  std::vector<std::thread> threads;
  for (int r = world - 1; r >= 0; --r) {
    threads.emplace_back([&, r] {
      try {
        work(r, ControlChannel::rendezvous(process(r, world, port), seconds(30)));
      } catch (const std::exception& error) {
        thrown[static_cast<size_t>(r)] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return thrown;
}

std::vector<float> values_of(int rank, int round, size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    values[i] = std::sin(static_cast<float>(i * 37 + static_cast<size_t>(rank * 11 + round)));  // float32 sums round
  }
  values[0] = -0.0f;
  return values;
}

TEST(ControlChannel, GatherGivesAllWhatEachHolds) {
  for (const int world : {2, 4}) {
    std::vector<ControlChannel::Bytes> got(static_cast<size_t>(world));
    const auto thrown = run_ranks(world, [&](int rank, const std::shared_ptr<ControlChannel>& channel) {
      const std::byte mine[] = {std::byte(10 + rank), std::byte(200 - rank)};
      for (int round = 0; round < 3; ++round)
        got[static_cast<size_t>(rank)] = channel->gather(ControlChannel::Message::kPeers, mine);
      EXPECT_TRUE(rank == 0 || !channel->next_command());
      channel->end();
    });
    EXPECT_EQ(thrown, std::vector<std::string>(static_cast<size_t>(world)));
    ControlChannel::Bytes want;
    for (int rank = 0; rank < world; ++rank) want.insert(want.end(), {std::byte(10 + rank), std::byte(200 - rank)});
    for (const ControlChannel::Bytes& all : got) EXPECT_EQ(all, want);
  }
}

// The tensors of each rank after a sum of rows inside wider ones, a broadcast and a gather of uneven columns.
std::vector<float> exchange(Backend& be, int rank, int world) {
  std::vector<int64_t> begins = {0};
  for (int r = 0; r < world; ++r) begins.push_back(begins.back() + r + 1);
  const int64_t cols = begins.back();
  std::vector<float> all;
  const auto keep = [&](const Tensor& t) {
    std::vector<float> values(static_cast<size_t>(t.size()));
    be.read(values.data(), t);
    all.insert(all.end(), values.begin(), values.end());
  };
  const Tensor wide = be.alloc(DType::kF32, {3, 9}), x = be.alloc(DType::kF32, {2, cols});
  be.write(wide, values_of(rank, 0, 27).data());
  be.all_reduce(wide.columns(1, 7));
  keep(wide.columns(1, 7));
  be.write(wide, values_of(rank, 1, 27).data());
  be.broadcast(wide.columns(2, 5));
  keep(wide);
  be.write(x, values_of(rank, 2, static_cast<size_t>(2 * cols)).data());
  be.gather_columns(x, begins);
  if (rank == 0) keep(x);
  return all;
}

TEST(ControlChannel, ExchangesEqualThoseOfOneProcessToTheBit) {
  for (const int world : {2, 4}) {
    std::vector<std::vector<float>> within(static_cast<size_t>(world)), over = within;
    const Ranks ranks = make_ranks("ref", 0, world);
    ranks.run([&](int r) { within[static_cast<size_t>(r)] = exchange(ranks[r], r, world); });
    const auto thrown = run_ranks(world, [&](int r, const std::shared_ptr<ControlChannel>& channel) {
      const Ranks one = make_ranks("ref", 0, 1, channel);
      EXPECT_EQ(one.size(), 1);
      EXPECT_EQ(one.world(), world);
      EXPECT_EQ(one[0].rank(), r);
      over[static_cast<size_t>(r)] = exchange(one[0], r, world);
      EXPECT_TRUE(r == 0 || !channel->next_command());
    });
    for (size_t r = 0; r < within.size(); ++r) {
      EXPECT_EQ(thrown[r], "");
      ASSERT_EQ(over[r].size(), within[r].size());
      EXPECT_EQ(std::memcmp(over[r].data(), within[r].data(), over[r].size() * sizeof(float)), 0)
          << r << " of " << world;
    }
    EXPECT_NE(values_of(0, 0, 27), values_of(1, 0, 27));
  }
}

TEST(ControlChannel, CommandsArriveInOrderAndEnd) {
  std::atomic<int> heard{0};
  const auto thrown = run_ranks(3, [&](int r, const std::shared_ptr<ControlChannel>& channel) {
    if (r == 0) {
      for (const size_t size : {0, 5, 1 << 20})
        channel->send_all(ControlChannel::Message::kCommand, std::vector<std::byte>(size));
      return channel->end();
    }
    for (const size_t size : {0, 5, 1 << 20}) EXPECT_EQ(channel->next_command()->size(), size);
    EXPECT_FALSE(channel->next_command());
    channel->end();
    ++heard;
  });
  EXPECT_EQ(thrown, std::vector<std::string>(3));
  EXPECT_EQ(heard, 2);
}

TEST(ControlChannel, FailureReachesAllOtherRanks) {
  for (const int bad : {0, 2}) {
    const auto thrown = run_ranks(4, [&](int r, const std::shared_ptr<ControlChannel>& channel) {
      if (r == bad) return channel->fail(kExitDevice, "it fell off the bus");
      r == 0 ? channel->wait_ready() : (void)channel->next_command();
    });
    for (int r = 0; r < 4; ++r) {
      const std::string want = r == bad ? "" : "rank " + std::to_string(bad) + ": it fell off the bus";
      EXPECT_EQ(thrown[static_cast<size_t>(r)], want) << r;
    }
  }
}

// An exception makes a process leave early. The end() in its destructor must not look like an answer to rank 0's kEnd.
TEST(ControlChannel, ARankThatEndsBeforeRank0HasFailed) {
  const auto thrown = run_ranks(2, [&](int r, const std::shared_ptr<ControlChannel>& channel) {
    r == 0 ? channel->wait_ready() : channel->end();
  });
  EXPECT_EQ(thrown[0], "rank 1 has ended before its time; its own message says why");
  EXPECT_EQ(thrown[1], "");
}

// When rank 1 disconnects while nobody reads, the watching thread notices.
TEST(ControlChannel, ADisconnectIsNoticedWithoutReading) {
  run_ranks(3, [&](int r, const std::shared_ptr<ControlChannel>& channel) {
    if (r == 1) return;
    std::string why;
    std::mutex mutex;
    std::condition_variable wake;
    channel->on_peer_lost([&](const std::string& reason) {
      const std::lock_guard lock(mutex);
      why = reason;
      wake.notify_all();
    });
    std::unique_lock lock(mutex);
    EXPECT_TRUE(wake.wait_for(lock, seconds(8), [&] { return !why.empty(); })) << r;
    EXPECT_EQ(why, "rank 1 has ended before its time; its own message says why") << r;
    lock.unlock();
    channel->on_peer_lost(nullptr);
  });
}

TEST(ControlChannel, OtherProgramsAreDisconnected) {
  const int port = free_port();
  std::shared_ptr<ControlChannel> first, second;
  std::thread rank_0([&] { first = ControlChannel::rendezvous(process(0, 2, port), seconds(30)); });
  const Stranger http(port, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), silent(port, ""), brief(port, "gm4");
  second = ControlChannel::rendezvous(process(1, 2, port), seconds(30));
  rank_0.join();
  char byte;
  EXPECT_EQ(recv(http.descriptor(), &byte, 1, MSG_DONTWAIT) > 0, false);
  second->send_ready();
  EXPECT_NO_THROW(first->wait_ready());
}

TEST(ControlChannel, ContradictionsAndAbsenceAreRefused) {
  const int port = free_port();
  const auto refused = [&](const ProcessInfo& a, const ProcessInfo& b, seconds timeout) {
    std::string first;
    std::thread other([&] { EXPECT_THROW(ControlChannel::rendezvous(b, timeout), Error); });
    try {
      ControlChannel::rendezvous(a, timeout);
    } catch (const Error& error) {
      first = error.what();
    }
    other.join();
    return first;
  };
  EXPECT_EQ(refused(process(0, 2, port), process(1, 4, port), seconds(20)),
            "rank 1 says that there are 4 processes, and rank 0 that there are 2");
  EXPECT_EQ(refused(process(0, 3, free_port()), process(1, 3, free_port()), seconds(1)).substr(0, 32),
            "ranks 1, 2 of 3 did not come to ");
  ProcessInfo same = process(0, 2, port);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in at = {};
  at.sin_family = AF_INET, at.sin_port = htons(static_cast<uint16_t>(port));
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&at), sizeof(at)), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  EXPECT_THROW(ControlChannel::rendezvous(same, seconds(1)), Error);
  close(fd);
}

// Two ends of one connection; the far end sends messages that no rank sends.
TEST(ControlChannel, AbsurdMessagesAreErrorsNotAllocations) {
  const auto receive = [](std::vector<uint32_t> words, const auto& read) {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    ControlChannel channel(process(1, 2, 0), {ends[0]});
    ASSERT_EQ(send(ends[1], words.data(), 4 * words.size(), 0), static_cast<ssize_t>(4 * words.size()));
    EXPECT_THROW(read(channel), DeviceError);
    close(ends[1]);
  };
  const auto call = [](ControlChannel& channel) { channel.next_command(); };
  const auto tensor = [](ControlChannel& channel) {
    std::byte bytes[16];
    channel.receive(0, ControlChannel::Message::kTensor, bytes);
  };
  const auto code = [](ControlChannel::Message type) { return static_cast<uint32_t>(type); };
  receive({code(ControlChannel::Message::kCommand), 0xffffffff}, call);
  receive({code(ControlChannel::Message::kTensor), 4, 0}, call);
  receive({77, 4, 0}, call);
  receive({code(ControlChannel::Message::kTensor), 12, 0, 0, 0}, tensor);
  receive({code(ControlChannel::Message::kTensor), 20, 0, 0, 0, 0, 0}, tensor);
  receive({code(ControlChannel::Message::kFailed), 0}, call);
}

}  // namespace
}  // namespace gemma4
