#include "backend/cuda/megakernel/kernel_clocks.h"

#if GEMMA4_KERNEL_CLOCKS

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "backend/cuda/megakernel/recorder.h"
#include "backend/cuda/runtime/error.h"

namespace gemma4::cuda {
namespace {

std::string label_of(const Instruction& op) {
  if (op.opcode == Opcode::kRmsNorm) return "rms_norm";
  if (op.opcode == Opcode::kAttention) return "attention, head size " + std::to_string(op.attention.kv.dim);
  const GemvInstruction& gemv = op.gemv;
  return (gemv.geglu ? "geglu " : "gemv ") + std::to_string(gemv.rows) + "x" +
         std::to_string(gemv.col_tiles * kWeightTileCols);
}

struct Times {
  std::vector<double> wait, work, step;  // microseconds
};

std::string median_and_max(std::vector<double>& values) {
  if (values.empty()) return "";
  std::sort(values.begin(), values.end());
  char text[64];
  std::snprintf(text, sizeof text, "%9.2f %9.2f", values[values.size() / 2], values.back());
  return text;
}

}  // namespace

KernelClocks::KernelClocks(int blocks) : blocks_(blocks) {
  const char* file = std::getenv("GEMMA4_KERNEL_CLOCKS");
  if (!file) return;
  file_ = file;
  const size_t bytes = sizeof(ClockEntry) * kClockInstructionsMax * static_cast<size_t>(blocks);
  CUDA_CHECK(cudaMalloc(&entries_, bytes));
  CUDA_CHECK(cudaMemset(entries_, 0, bytes));
}

void KernelClocks::launched(const std::vector<Instruction>& list) {
  labels_.clear();
  for (const Instruction& op : list) labels_.push_back(label_of(op));
  if (labels_.size() > kClockInstructionsMax) labels_.resize(kClockInstructionsMax);
}

KernelClocks::~KernelClocks() {
  if (!entries_) return;
  std::vector<ClockEntry> entries(labels_.size() * static_cast<size_t>(blocks_));
  const bool read =
      cudaDeviceSynchronize() == cudaSuccess &&
      cudaMemcpy(entries.data(), entries_, entries.size() * sizeof(ClockEntry), cudaMemcpyDeviceToHost) == cudaSuccess;
  cudaFree(entries_);
  std::FILE* out = read && !entries.empty() ? std::fopen(file_.c_str(), "w") : nullptr;
  if (!out) return;
  std::map<std::string, Times> times;
  std::map<std::string, int> counts;
  uint64_t begin = UINT64_MAX, end = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    const ClockEntry& e = entries[i];
    const std::string& label = labels_[i / static_cast<size_t>(blocks_)];
    counts[label] += i % static_cast<size_t>(blocks_) == 0;
    if (e.end == 0) continue;
    begin = std::min(begin, e.begin), end = std::max(end, e.end);
    if (label.starts_with("attention") && e.ready == e.begin) continue;  // a CTA without keys
    times[label].wait.push_back(1e-3 * static_cast<double>(e.ready - e.begin));
    times[label].work.push_back(1e-3 * static_cast<double>(e.end - e.ready));
  }
  // How much later than the instruction before the last CTA ended this one.
  uint64_t before = begin;
  for (size_t i = 0; i < labels_.size(); ++i) {
    uint64_t last = before;
    for (int block = 0; block < blocks_; ++block) {
      last = std::max(last, entries[i * static_cast<size_t>(blocks_) + static_cast<size_t>(block)].end);
    }
    times[labels_[i]].step.push_back(1e-3 * static_cast<double>(last - before));
    before = last;
  }
  std::fprintf(out, "%zu instructions, %d CTAs, %.1f us\n", labels_.size(), blocks_,
               end > begin ? 1e-3 * static_cast<double>(end - begin) : 0.0);
  std::fprintf(out, "%-28s %6s %19s %19s %19s\n", "us; median and maximum", "count", "wait", "work", "step");
  for (auto& [label, t] : times) {
    std::fprintf(out, "%-28s %6d %s %s %s\n", label.c_str(), counts[label], median_and_max(t.wait).c_str(),
                 median_and_max(t.work).c_str(), median_and_max(t.step).c_str());
  }
  std::fclose(out);
}

}  // namespace gemma4::cuda

#endif
