// gemma4 bench --load: the time from a checkpoint's files to the first token, and how much memory the weights then
// take: memory of the process (repacked weights), or pages of mapped files (shared, and freed when memory is short).
#pragma once

#include <string>

namespace gemma4 {

struct LoadFlags {
  std::string model, backend;
  int threads = 0;
  bool json = false;
};

int bench_load(const LoadFlags& flags);  // an exit code; throws Error

}  // namespace gemma4
