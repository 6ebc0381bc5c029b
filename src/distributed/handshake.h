// The handshake of a connection to rank 0. Both ends prove that they know the token of the job, and neither sends it:
//   rank -> rank 0   Hello: which rank it is, and a nonce
//   rank 0 -> rank   Challenge: a nonce
//   rank -> rank 0   Proof: HMAC-SHA256 of all of this with the token as the key
//   rank 0 -> rank   Proof, when all ranks are connected
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "distributed/hmac.h"

namespace gemma4 {

using Nonce = std::array<uint8_t, 16>;
using Proof = Sha256Digest;

constexpr uint64_t kHandshakeMagic = 0x346b6e696c346d67;  // "gm4link4"
constexpr uint32_t kHandshakeVersion = 2;

// What a connection is for: the messages of ControlChannel, or the beats by which the ends know of each other.
enum class ConnectionUse : uint32_t { kMessages, kBeats };

struct Hello {
  uint64_t magic = kHandshakeMagic;
  uint32_t version = kHandshakeVersion, rank = 0, world = 0;
  ConnectionUse connection = ConnectionUse::kMessages;
  Nonce nonce = {};
};

struct Challenge {
  uint64_t magic = kHandshakeMagic;
  Nonce nonce = {};
};

// Rank 0's end. Feed it what arrives, send what it returns.
class HandshakeAcceptor {
 public:
  // kStranger: not this program. kWrongToken: this program, with another token.
  enum class State { kHello, kProof, kTrusted, kStranger, kWrongToken };

  HandshakeAcceptor(std::string token, const Nonce& nonce) : token_(std::move(token)) { challenge_.nonce = nonce; }

  std::string take(std::string_view bytes);
  State state() const { return state_; }
  const Hello& hello() const { return hello_; }  // to be believed in kTrusted only
  std::string answer() const;                    // rank 0's own proof

 private:
  std::string token_, received_;
  Hello hello_;
  Challenge challenge_;
  State state_ = State::kHello;
};

// The other rank's end.
class HandshakeInitiator {
 public:
  HandshakeInitiator(std::string token, const Hello& hello) : token_(std::move(token)), hello_(hello) {}

  std::string hello() const;
  // The proof that answers a challenge of sizeof(Challenge) bytes; empty: the other end is not this program.
  std::string prove(std::string_view challenge);
  bool accepts(std::string_view answer) const;  // is it rank 0's proof?

 private:
  std::string token_;
  Hello hello_;
  Challenge challenge_;
};

Nonce random_nonce();

}  // namespace gemma4
