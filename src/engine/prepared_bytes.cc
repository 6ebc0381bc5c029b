#include "engine/prepared_bytes.h"

#include <chrono>

namespace gemma4 {
namespace {

constexpr std::chrono::milliseconds kCancelCheck(50);

}  // namespace

bool PreparedBytes::try_take(int64_t bytes) {
  const MutexLock lock(mutex_);
  if (!queue_.empty() || !fits(bytes)) return false;
  bytes_ += bytes;
  return true;
}

void PreparedBytes::wait(int64_t bytes, const Preparation& preparation) {
  const MutexLock lock(mutex_);
  const auto place = queue_.insert(queue_.end(), bytes);
  while ((place != queue_.begin() || !fits(bytes)) && !(preparation.cancellation && preparation.cancellation->cancelled())) {
    changed_.wait_until(mutex_, std::chrono::steady_clock::now() + kCancelCheck);
  }
  const bool mine = place == queue_.begin() && fits(bytes);
  queue_.erase(place);
  changed_.notify_all();
  if (!mine) throw CancelledError("the request was cancelled");
  bytes_ += bytes;
}

void PreparedBytes::give_back(int64_t bytes) {
  const MutexLock lock(mutex_);
  bytes_ -= bytes;
  changed_.notify_all();
}

PreparedBytes::Held PreparedBytes::take(int64_t bytes, const Preparation& preparation) {
  if (bytes == 0) return nullptr;
  if (!try_take(bytes)) {
    const auto wait_here = [&] { wait(bytes, preparation); };
    if (preparation.pause) {
      preparation.pause(wait_here);
    } else {
      wait_here();
    }
  }
  return {this, [bytes](void* self) { static_cast<PreparedBytes*>(self)->give_back(bytes); }};
}

int64_t PreparedBytes::bytes() const {
  const MutexLock lock(mutex_);
  return bytes_;
}

int PreparedBytes::waiting() const {
  const MutexLock lock(mutex_);
  return static_cast<int>(queue_.size());
}

}  // namespace gemma4
