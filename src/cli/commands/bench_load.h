// gemma4 bench --load: how long a checkpoint takes from its files to the first token, and whose memory its weights are
// in then: the process's own (laid out anew) or the files' (mapped, shared, given back for the asking).
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
