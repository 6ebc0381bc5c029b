// Exports a checkpoint of any format as a program, whose weights have the layout of one backend's kernels. Weights are
// laid out one at a time, so memory holds only the largest one.
#pragma once

#include <filesystem>
#include <string>

#include "base/file.h"
#include "checkpoint/checkpoint.h"

namespace gemma4 {

struct ProgramExport {
  std::string backend = "cpu";
  int threads = 0;      // 0: all cores
  int max_seq_len = 0;  // 0: the longest that fits in memory here (model/cache_plan.h)
  bool vision = true;   // false: without the vision weights
  Overwrite overwrite = Overwrite::kRefuse;
  std::filesystem::path source;  // where the checkpoint was opened, and where its vision half, for messages
  std::filesystem::path source_vision;
  std::string recipe, hqq;  // for messages: what the weights were quantised with on the way, if they were
  int image_budget = 0;     // for messages: the soft tokens of a picture that the caller set; 0: the checkpoint's
};

// Throws Error.
void export_program(const Checkpoint& checkpoint, const ProgramExport& options, const std::filesystem::path& output);

}  // namespace gemma4
