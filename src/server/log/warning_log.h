// WarningLog: the warnings of all requests (base/warnings.h), on standard error. Each sentence is written once in the
// life of a server: clients send the same hints with every request.
#pragma once

#include <functional>
#include <set>
#include <string>

#include "base/warnings.h"

namespace gemma4 {

class WarningLog {
 public:
  static constexpr size_t kSentencesMax = 1000;  // that are remembered; no more are written after that

  explicit WarningLog(std::function<void(const std::string& line)> write) : write_(std::move(write)) {}  // null: none

  void log(const std::string& path, const std::shared_ptr<Warnings>& warnings) EXCLUDES(mutex_);

 private:
  const std::function<void(const std::string& line)> write_;
  Mutex mutex_;
  std::set<std::string> said_ GUARDED_BY(mutex_);
};

}  // namespace gemma4
