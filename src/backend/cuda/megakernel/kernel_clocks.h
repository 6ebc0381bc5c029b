// KernelClocks: where the time of a decode step goes, by clocks that the megakernel writes. For developers: a build
// with cmake -DKERNEL_CLOCKS=ON, run with GEMMA4_KERNEL_CLOCKS=FILE. In each instruction every CTA writes when it
// began, when it had its input, and when it ended (instruction_clock.cuh). When the backend closes, a table of the last
// step goes to FILE: for each type of instruction the median and the maximum over its instructions and CTAs of the time
// that a CTA waited and worked, and how much later than the instruction before the last CTA ended it. Other builds have
// nothing of this.
#pragma once

#if GEMMA4_KERNEL_CLOCKS

#include <cstdint>
#include <string>
#include <vector>

namespace gemma4::cuda {

struct Instruction;

struct ClockEntry {
  uint64_t begin, ready, end;  // nanoseconds of the GPU's global timer
};
inline constexpr int kClockInstructionsMax = 1024;  // later instructions of a list are not measured

class KernelClocks {
 public:
  explicit KernelClocks(int blocks);
  ~KernelClocks();  // writes the table
  KernelClocks(const KernelClocks&) = delete;
  KernelClocks& operator=(const KernelClocks&) = delete;

  ClockEntry* entries() const { return entries_; }  // [kClockInstructionsMax, CTAs] on the device; null: no file
  void launched(const std::vector<Instruction>& list);

 private:
  std::string file_;
  int blocks_;
  ClockEntry* entries_ = nullptr;
  std::vector<std::string> labels_;  // of the list launched last
};

}  // namespace gemma4::cuda

#endif
