// Fuzz target: what a stranger sends to rank 0's port. Nothing but the bytes of one who knows the token is trusted.
#include <algorithm>

#include "base/mutate_testing.h"
#include "distributed/handshake.h"

namespace gemma4 {
namespace {

const std::string kToken = "a token of the fuzzer";
constexpr Nonce kNonce = {1, 2, 3};

std::string transcript(uint32_t rank, ConnectionUse connection) {
  Hello hello;
  hello.rank = rank, hello.world = 2, hello.connection = connection;
  HandshakeInitiator initiator(kToken, hello);
  HandshakeAcceptor acceptor(kToken, kNonce);
  return initiator.hello() + initiator.prove(acceptor.take(initiator.hello()));
}

std::vector<std::string> seeds() {
  return {transcript(1, ConnectionUse::kMessages), transcript(1, ConnectionUse::kBeats)};
}

HandshakeAcceptor::State state_after(const std::string& input, size_t piece) {
  HandshakeAcceptor acceptor(kToken, kNonce);
  for (size_t at = 0; at < input.size(); at += piece) acceptor.take(std::string_view(input).substr(at, piece));
  return acceptor.state();
}

void run(const std::string& input) {
  static const std::vector<std::string> right = seeds();
  const HandshakeAcceptor::State whole = state_after(input, input.size());
  const bool trusted = whole == HandshakeAcceptor::State::kTrusted;
  CHECK(trusted == (std::ranges::find(right, input) != right.end()));
  CHECK(trusted == (state_after(input, 7) == HandshakeAcceptor::State::kTrusted));
  HandshakeInitiator initiator(kToken, Hello());
  initiator.prove(std::string_view(input).substr(0, sizeof(Challenge)));
  CHECK(!initiator.accepts(input));
  if (!trusted) throw Error("a stranger");
}

const RegisterFuzz kTarget({"handshake", seeds, run, {"GET / HTTP/1.1\r\n", "gm4link4"}});

}  // namespace
}  // namespace gemma4
