#include "distributed/handshake.h"

#include <sys/random.h>

#include <cstring>

#include "base/check.h"

namespace gemma4 {
namespace {

static_assert(sizeof(Hello) == 40 && sizeof(Challenge) == 24, "no padding goes over the wire");

template <typename T>
std::string bytes_of(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

// The two roles differ, so that a proof cannot be sent back to the end that made it.
std::string proof(const std::string& token, std::string_view role, const Hello& hello, const Challenge& challenge) {
  std::string message(role);
  message += bytes_of(hello);
  message += bytes_of(challenge);
  return bytes_of(hmac_sha256(token, message));
}

constexpr std::string_view kRank = "gemma4 rank:", kRank0 = "gemma4 rank 0:";

}  // namespace

std::string HandshakeAcceptor::take(std::string_view bytes) {
  std::string reply;
  received_ += bytes;
  if (state_ == State::kHello && received_.size() >= sizeof(Hello)) {
    std::memcpy(&hello_, received_.data(), sizeof(Hello));
    received_.erase(0, sizeof(Hello));
    const bool ours = hello_.magic == kHandshakeMagic && hello_.version == kHandshakeVersion &&
                      static_cast<uint32_t>(hello_.connection) <= static_cast<uint32_t>(ConnectionUse::kBeats);
    state_ = ours ? State::kProof : State::kStranger;
    if (ours) reply = bytes_of(challenge_);
  }
  if (state_ == State::kProof && received_.size() >= sizeof(Proof)) {
    const std::string_view given = std::string_view(received_).substr(0, sizeof(Proof));
    const bool right = equal_in_constant_time(given, proof(token_, kRank, hello_, challenge_));
    state_ = right ? State::kTrusted : State::kWrongToken;
    received_.erase(0, sizeof(Proof));
  }
  // The next word is rank 0's.
  if (state_ == State::kTrusted && !received_.empty()) state_ = State::kStranger;
  if (state_ == State::kStranger || state_ == State::kWrongToken) received_.clear();
  return reply;
}

std::string HandshakeAcceptor::answer() const { return proof(token_, kRank0, hello_, challenge_); }

std::string HandshakeInitiator::hello() const { return bytes_of(hello_); }

std::string HandshakeInitiator::prove(std::string_view challenge) {
  if (challenge.size() != sizeof(Challenge)) return "";
  std::memcpy(&challenge_, challenge.data(), sizeof(Challenge));
  return challenge_.magic == kHandshakeMagic ? proof(token_, kRank, hello_, challenge_) : "";
}

bool HandshakeInitiator::accepts(std::string_view answer) const {
  return equal_in_constant_time(answer, proof(token_, kRank0, hello_, challenge_));
}

Nonce random_nonce() {
  Nonce nonce;
  if (getrandom(nonce.data(), nonce.size(), 0) != static_cast<ssize_t>(nonce.size())) {
    throw Error("the system gives no random numbers");
  }
  return nonce;
}

}  // namespace gemma4
