// Warnings: what one request asked for that has no effect, or could not be kept, one sentence each. The parsers of the
// APIs, the compiler of formats and the workers that make its output add to it, from any thread. Each API's answer
// lists them in "warnings" (docs/SERVER.md); they are never part of the answer's text.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/utf8.h"

namespace gemma4 {

class Warnings {
 public:
  static constexpr size_t kCountMax = 32, kBytesMax = 400;

  // A sentence that is there already is not added again, nor one past the limit of their count; a long one is cut.
  // Control characters, which would break a line of the log, become blanks.
  void add(std::string sentence) EXCLUDES(mutex_) {
    if (sentence.size() > kBytesMax) sentence = sentence.substr(0, kBytesMax - 3) + "...";
    std::ranges::replace_if(sentence, [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
    sentence = utf8_repair(sentence);
    const MutexLock lock(mutex_);
    if (all_.size() >= kCountMax || std::ranges::find(all_, sentence) != all_.end()) return;
    all_.push_back(std::move(sentence));
  }

  std::vector<std::string> list() const EXCLUDES(mutex_) {  // in order of arrival
    const MutexLock lock(mutex_);
    return all_;
  }

 private:
  mutable Mutex mutex_;
  std::vector<std::string> all_ GUARDED_BY(mutex_);
};

// Null: nobody wants to know.
inline void warn(const std::shared_ptr<Warnings>& warnings, std::string sentence) {
  if (warnings) warnings->add(std::move(sentence));
}

}  // namespace gemma4
