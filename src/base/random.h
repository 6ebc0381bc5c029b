// Where do bits come from that nobody can guess? From the operating system: seeds, keys of hashes, names of temporary
// files. (Not std::random_device: a libstdc++ linked into the program would tie it to the C library it was built with.)
#pragma once

#include <sys/random.h>

#include <cstdint>

#include "base/check.h"

namespace gemma4 {

inline uint64_t system_random() {
  uint64_t bits = 0;
  CHECK(getentropy(&bits, sizeof(bits)) == 0);  // fails only where the kernel is older than 3.17
  return bits;
}

}  // namespace gemma4
