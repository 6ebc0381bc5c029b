// MemoryMeter: how much memory does one input take at most? Counts every allocation, also those of C libraries. Asks
// AddressSanitizer where it is there; elsewhere meter.cc replaces malloc() and its kin.
#pragma once

#include <cstddef>

namespace gemma4 {

class MemoryMeter {
 public:
  static void start();   // what is there already does not count
  static size_t peak();  // bytes since start()
};

}  // namespace gemma4
