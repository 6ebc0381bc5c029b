#include "server/warning_log.h"

#include <cstdio>

namespace gemma4 {

void WarningLog::to_standard_error(const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }

void WarningLog::log(const std::string& path, const std::shared_ptr<Warnings>& warnings) {
  if (!warnings) return;
  for (const std::string& sentence : warnings->list()) {
    {
      const MutexLock lock(mutex_);
      if (said_.size() >= kSentencesMax || !said_.insert(sentence).second) continue;
    }
    write_("gemma4: " + path + ": " + sentence);
  }
}

}  // namespace gemma4
