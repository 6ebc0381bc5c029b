#include "backend/roofline.h"

#include <chrono>

#include "backend/cpu/peak.h"
#include "base/threads.h"

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

}  // namespace

struct RooflineMeter::State {
  explicit State(int threads) : pool(threads) {}
  ThreadPool pool;
  cpu::PeakMemory memory{int64_t{1} << 29};
};

RooflineMeter::RooflineMeter(int threads) : state_(std::make_unique<State>(threads)) {}
RooflineMeter::~RooflineMeter() = default;

Roofline RooflineMeter::measure() {
  Roofline best;
  for (int i = 0; i < 5; ++i) {
    auto start = Clock::now();
    state_->memory.read(state_->pool);
    best.bytes_per_second =
        std::max(best.bytes_per_second, static_cast<double>(state_->memory.bytes()) / seconds(start));
    start = Clock::now();
    const double flops = cpu::peak_multiply_adds(state_->pool);
    best.flops_per_second = std::max(best.flops_per_second, flops / seconds(start));
  }
  return best;
}

}  // namespace gemma4
