#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/peak.cc"  // NOLINT
#include "hwy/foreach_target.h"                   // IWYU pragma: keep

#include "backend/cpu/memory.h"
#include "backend/cpu/peak.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {

// Has the same prefetches as the kernels, so that comparing with them is fair. The sum is returned, so the compiler
// cannot remove the loads.
float ReadAll(const uint8_t* data, int64_t bytes) {
  const DF d;
  constexpr int64_t kAhead = 4096;
  constexpr size_t kStep = 4 * kLanes * sizeof(float);
  VF acc[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  for (int64_t i = 0; i + static_cast<int64_t>(kStep) <= bytes; i += kStep) {
    const float* from = reinterpret_cast<const float*>(data + i);
    for (size_t line = 0; line < kStep; line += 64) hwy::Prefetch(data + i + kAhead + line);
    unroll<4>([&](auto j) GEMMA4_INLINE { acc[j] = hn::Add(acc[j], hn::Load(d, from + j * kLanes)); });
  }
  return hn::GetLane(hn::Add(hn::Add(acc[0], acc[1]), hn::Add(acc[2], acc[3])));
}

// 12 chains: more than latency times throughput of any machine we know, fewer than its registers.
float MultiplyAdds(int64_t count) {
  const DF d;
  const VF a = hn::Set(d, 0.999f), b = hn::Set(d, 0.001f);
  VF acc[12];
  unroll<12>([&](auto i) GEMMA4_INLINE { acc[i] = hn::Set(d, static_cast<float>(i + 1)); });
  for (int64_t i = 0; i < count; ++i) {
    unroll<12>([&](auto j) GEMMA4_INLINE { acc[j] = hn::MulAdd(acc[j], a, b); });
  }
  VF total = acc[0];
  unroll<12>([&](auto i) GEMMA4_INLINE { total = hn::Add(total, acc[i]); });
  return hn::GetLane(hn::SumOfLanes(d, total));
}

int64_t Lanes() { return kLanes; }

}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {

HWY_EXPORT(ReadAll);
HWY_EXPORT(MultiplyAdds);
HWY_EXPORT(Lanes);

namespace {
std::atomic<float> sink;
}  // namespace

PeakMemory::PeakMemory(int64_t bytes)
    : bytes_(bytes), storage_(std::make_unique<Storage>(bytes, std::make_shared<std::atomic<int64_t>>(0))) {}
PeakMemory::~PeakMemory() = default;

void PeakMemory::read(ThreadPool& pool) const {
  pool.parallel_for(bytes_, int64_t{1} << 20, [&](int64_t begin, int64_t end) {
    sink = HWY_DYNAMIC_DISPATCH(ReadAll)(storage_->data() + begin, end - begin);
  });
}

double peak_multiply_adds(ThreadPool& pool) {
  constexpr int64_t kCount = 1 << 21;
  pool.run([&](int) { sink = HWY_DYNAMIC_DISPATCH(MultiplyAdds)(kCount); });
  return 2.0 * 12 * kCount * static_cast<double>(HWY_DYNAMIC_DISPATCH(Lanes)() * pool.threads());
}

}  // namespace gemma4::cpu
#endif
