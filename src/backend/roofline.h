// Roofline: the most that this machine's processor can do: bytes read from memory, and float32 multiply-adds in
// registers, measured by simple loops on as many threads as the cpu backend has. Benchmarks report the fraction of it
// that they reach.
#pragma once

#include <algorithm>
#include <memory>

namespace gemma4 {

struct Roofline {
  double bytes_per_second = 0;  // reads of 512 MiB, in huge pages
  double flops_per_second = 0;  // 2 for a multiply-add

  // The time for work of this size if only these two limits count (Williams et al. 2009).
  double least_seconds(double bytes, double flops) const {
    return std::max(bytes / bytes_per_second, flops / flops_per_second);
  }
};

class RooflineMeter {
 public:
  explicit RooflineMeter(int threads);  // 0: all cores
  ~RooflineMeter();

  // Best of several short tries. On a shared machine the read bandwidth changes from one second to the next, so it is
  // measured beside whatever is compared with it.
  Roofline measure();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gemma4
