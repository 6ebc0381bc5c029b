#include "distributed/heartbeats.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

namespace gemma4 {
namespace {

bool heard(int fd) {
  char beats[256];
  bool any = false;
  while (recv(fd, beats, sizeof(beats), MSG_DONTWAIT) > 0) any = true;
  return any;
}

}  // namespace

Heartbeats::Heartbeats(std::vector<int> sockets) {
  for (size_t r = 0; r < sockets.size(); ++r) {
    if (sockets[r] >= 0) peers_.push_back({static_cast<int>(r), sockets[r]});
  }
}

Heartbeats::~Heartbeats() {
  for (const Peer& peer : peers_) close(peer.fd);
}

Heartbeats::Duration Heartbeats::interval(Duration limit) {
  return std::clamp(limit / 4, Duration(10), Duration(1000));
}

std::optional<int> Heartbeats::beat(Duration limit) {
  const auto now = std::chrono::steady_clock::now();
  const Duration since = std::min(std::chrono::duration_cast<Duration>(now - last_), 2 * interval(limit));
  last_ = now;
  std::optional<int> silent;
  for (Peer& peer : peers_) {
    (void)!send(peer.fd, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    peer.silent = heard(peer.fd) ? Duration(0) : peer.silent + since;
    if (peer.silent >= limit) silent = peer.rank;
  }
  return silent;
}

}  // namespace gemma4
