#include "server/log/warning_log.h"

namespace gemma4 {

void WarningLog::log(const std::string& path, const std::shared_ptr<Warnings>& warnings) {
  if (!warnings || !write_) return;
  for (const std::string& sentence : warnings->list()) {
    {
      const MutexLock lock(mutex_);
      if (said_.size() >= kSentencesMax || !said_.insert(sentence).second) continue;
    }
    write_("gemma4: " + path + ": " + sentence);
  }
}

}  // namespace gemma4
