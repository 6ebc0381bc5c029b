// Who is let in at rank 0's port, and who is not: the handshake, the token of a job and its file, strangers of all
// kinds, and ranks that fall silent.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/check.h"
#include "distributed/control_channel.h"
#include "distributed/free_port_testing.h"
#include "distributed/handshake.h"
#include "distributed/rendezvous_token.h"
#include "distributed/stranger_testing.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;
using State = HandshakeAcceptor::State;

ProcessInfo process_of(int rank, int world, int port) { return {rank, world, rank, world, "127.0.0.1", port}; }

ProcessInfo with_timeout(ProcessInfo info, milliseconds timeout) {
  info.rank_timeout = timeout;
  return info;
}

std::string thrown_by(const auto& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

std::string hex(const Sha256Digest& digest) {
  std::string text;
  for (const uint8_t byte : digest) text += {"0123456789abcdef"[byte >> 4], "0123456789abcdef"[byte & 15]};
  return text;
}

TEST(Hmac, KnownAnswers) {  // RFC 4231, cases 1, 2 and 6
  EXPECT_EQ(hex(hmac_sha256(std::string(20, '\x0b'), "Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  EXPECT_EQ(hex(hmac_sha256("Jefe", "what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(hex(hmac_sha256(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
  EXPECT_TRUE(equal_in_constant_time("abc", "abc"));
  EXPECT_FALSE(equal_in_constant_time("abc", "abd"));
  EXPECT_FALSE(equal_in_constant_time("abc", "ab"));
}

Hello hello_as(int rank, int world, ConnectionUse connection = ConnectionUse::kMessages) {
  Hello hello;
  hello.rank = static_cast<uint32_t>(rank), hello.world = static_cast<uint32_t>(world);
  hello.connection = connection, hello.nonce = random_nonce();
  return hello;
}

State state_after(const std::string& ours, const std::string& theirs) {
  HandshakeInitiator rank(theirs, hello_as(1, 2));
  HandshakeAcceptor rank_0(ours, random_nonce());
  rank_0.take(rank.prove(rank_0.take(rank.hello())));
  return rank_0.state();
}

TEST(Handshake, OnlyTheTokenIsTrusted) {
  EXPECT_EQ(state_after("one and the same", "one and the same"), State::kTrusted);
  EXPECT_EQ(state_after("one and the same", "one and another"), State::kWrongToken);
  HandshakeAcceptor rank_0("token", random_nonce());
  EXPECT_EQ(rank_0.take("GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*"), "");
  EXPECT_EQ(rank_0.state(), State::kStranger);
}

TEST(Handshake, AProofIsOfNoUseTwiceNorAtTheOtherEnd) {
  HandshakeInitiator rank("token", hello_as(1, 2));
  HandshakeAcceptor first("token", random_nonce()), second("token", random_nonce());
  const std::string proof = rank.prove(first.take(rank.hello()));
  first.take(proof);
  second.take(rank.hello() + proof);
  EXPECT_EQ(first.state(), State::kTrusted);
  EXPECT_EQ(second.state(), State::kWrongToken) << "another nonce";
  EXPECT_TRUE(rank.accepts(first.answer()));
  EXPECT_FALSE(rank.accepts(proof)) << "sent back";
  EXPECT_FALSE(rank.accepts(second.answer()));
}

// The first who spoke as rank 1 was taken, and each silent one cost two seconds.
TEST(Rendezvous, StrangersNeitherEnterNorDelay) {
  const int port = free_port();
  std::string failure;
  std::shared_ptr<ControlChannel> first;
  std::thread rank_0(
      [&] { failure = thrown_by([&] { first = ControlChannel::rendezvous(process_of(0, 2, port), seconds(30)); }); });
  std::vector<std::unique_ptr<Stranger>> strangers;
  for (int i = 0; i < 300; ++i) strangers.push_back(std::make_unique<Stranger>(port, ""));
  for (const std::string& says : {old_hello(2), std::string("gm4l"), std::string(5000, 'x')}) {
    strangers.push_back(std::make_unique<Stranger>(port, says));
  }
  HandshakeInitiator liar("the token of another job", hello_as(1, 2)), mute("", hello_as(1, 2));
  const Stranger wrong(port, liar.hello()), hears_only(port, mute.hello());
  wrong.say(liar.prove(wrong.hear(sizeof(Challenge))));
  EXPECT_EQ(wrong.hear(1), "") << "disconnected";
  const auto start = Clock::now();
  std::shared_ptr<ControlChannel> second;
  EXPECT_EQ(thrown_by([&] { second = ControlChannel::rendezvous(process_of(1, 2, port), seconds(30)); }), "");
  rank_0.join();
  EXPECT_EQ(failure, "");
  EXPECT_LT(Clock::now() - start, seconds(20)) << "it was two seconds for each of them";
  second->send_ready();
  EXPECT_NO_THROW(first->wait_ready());
}

TEST(Rendezvous, ASilentOneIsDisconnectedAfterTwoSeconds) {
  const int port = free_port();
  std::thread rank_0([&] { ControlChannel::rendezvous(process_of(0, 2, port), seconds(60)); });
  const Stranger silent(port, "");
  const auto start = Clock::now();
  EXPECT_EQ(silent.hear(1), "");
  EXPECT_GT(Clock::now() - start, milliseconds(1500));
  EXPECT_LT(Clock::now() - start, seconds(20));
  ControlChannel::rendezvous(process_of(1, 2, port), seconds(60));
  rank_0.join();
}

TEST(Rendezvous, ARankThatLeavesEndsIt) {
  const int port = free_port();
  std::string failure;
  std::thread rank_0(
      [&] { failure = thrown_by([&] { ControlChannel::rendezvous(process_of(0, 3, port), seconds(30)); }); });
  {
    const Stranger rank_1(port, "");
    HandshakeInitiator handshake(find_token(process_of(1, 3, port)), hello_as(1, 3));
    rank_1.say(handshake.hello());
    rank_1.say(handshake.prove(rank_1.hear(sizeof(Challenge))));
  }
  rank_0.join();
  EXPECT_EQ(failure, "rank 1 has ended before all ranks were connected");
}

TEST(RendezvousToken, ItsFileIsPrivateAndShortLived) {
  const ProcessInfo info = process_of(0, 2, free_port());
  const fs::path path = token_file(info.port);
  {
    const OfferedToken token(info);
    struct stat is = {};
    ASSERT_EQ(stat(path.c_str(), &is), 0);
    EXPECT_EQ(is.st_mode & 0777, 0600u);
    EXPECT_EQ(token.text(), find_token(info));
    EXPECT_NE(token.text(), OfferedToken(process_of(0, 2, free_port())).text());
    fs::permissions(path, fs::perms::others_read, fs::perm_options::add);
    EXPECT_NE(thrown_by([&] { find_token(info); }).find("another user can read or write it"), std::string::npos);
  }
  EXPECT_FALSE(fs::exists(path));
  EXPECT_NE(thrown_by([&] { find_token(info); }).find("No such file"), std::string::npos);
}

TEST(RendezvousToken, AFileLeftBehindIsReplacedAndALinkIsNotFollowed) {
  const ProcessInfo info = process_of(0, 2, free_port());
  const fs::path path = token_file(info.port), target = path.string() + "-target";
  std::ofstream(path) << "of a job that was killed";
  EXPECT_EQ(OfferedToken(info).text().size(), 64u);
  std::ofstream(target) << "precious";
  fs::create_symlink(target, path);
  EXPECT_NE(thrown_by([&] { OfferedToken{info}; }), "");
  EXPECT_NE(thrown_by([&] { find_token(info); }), "");
  EXPECT_EQ(fs::file_size(target), 8u);
  fs::remove(path);
  fs::remove(target);
}

TEST(RendezvousToken, SeveralHostsNeedTheVariable) {
  ProcessInfo info = process_of(0, 2, free_port());
  info.local_world = 1;
  info.address = "host-a";
  const std::string why = thrown_by([&] { OfferedToken{info}; });
  EXPECT_TRUE(
      why.starts_with("the processes lie on several hosts and connect to host-a, where strangers can connect "
                      "too: set the variable GEMMA4_RENDEZVOUS_TOKEN to a secret of 16 characters"))
      << why;
  EXPECT_EQ(thrown_by([&] { find_token(info); }), why);
  info.token = "0123456789abcdef";
  EXPECT_EQ(OfferedToken(info).text(), find_token(info));
}

// The other end of both connections is open and says nothing, as a stopped process.
TEST(ControlChannel, ARankThatIsSilentHasFailed) {
  int messages[2], beats[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, messages), 0);
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, beats), 0);
  {
    ControlChannel channel(with_timeout(process_of(0, 2, 0), milliseconds(400)), {-1, messages[0]}, {-1, beats[0]});
    const auto start = Clock::now();
    EXPECT_EQ(thrown_by([&] { channel.wait_ready(); }),
              "rank 1 has not answered for 0.4 s: it is stopped, or its host or the network does not work");
    EXPECT_LT(Clock::now() - start, seconds(5));
    EXPECT_THROW(channel.throw_if_failed(), DeviceError);
  }
  close(messages[1]);
  close(beats[1]);
}

// A rank that loads or computes neither sends nor receives messages, and is heard all the same.
TEST(ControlChannel, ARankThatWorksIsNotSilent) {
  const int port = free_port();
  std::atomic<int> well{0};
  const auto work = [&](int rank) {
    const auto channel =
        ControlChannel::rendezvous(with_timeout(process_of(rank, 2, port), milliseconds(1000)), seconds(30));
    std::this_thread::sleep_for(milliseconds(3000));
    if (rank == 0) {
      channel->wait_ready();
    } else {
      channel->send_ready();
      EXPECT_FALSE(channel->next_command());
    }
    channel->end();
    channel->throw_if_failed();
    ++well;
  };
  std::thread other([&] { EXPECT_EQ(thrown_by([&] { work(1); }), ""); });
  EXPECT_EQ(thrown_by([&] { work(0); }), "");
  other.join();
  EXPECT_EQ(well, 2);
}

}  // namespace
}  // namespace gemma4
