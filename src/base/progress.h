// Progress: a bar on a terminal, a plain line now and then elsewhere. Writes to stderr only.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace gemma4 {

class Progress {
 public:
  Progress(std::string what, uint64_t total_bytes);
  ~Progress();
  void add(uint64_t bytes, const std::string& detail = "");

 private:
  void draw(const std::string& detail);
  std::string what_;
  uint64_t total_, done_ = 0;
  bool terminal_;
  std::chrono::steady_clock::time_point start_, drawn_;
};

}  // namespace gemma4
