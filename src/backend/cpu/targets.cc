#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/targets.cc"  // NOLINT
#include "hwy/foreach_target.h"                      // IWYU pragma: keep

#include <cstring>
#include <string>

#include "backend/cpu/simd-inl.h"
#include "backend/cpu/targets.h"
#include "base/check.h"

HWY_BEFORE_NAMESPACE();
namespace gemma4::cpu::HWY_NAMESPACE {
const char* RunningTarget() { return hwy::TargetName(HWY_TARGET); }
}  // namespace gemma4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gemma4::cpu {

HWY_EXPORT(RunningTarget);

const char* running_target() { return HWY_DYNAMIC_DISPATCH(RunningTarget)(); }

std::vector<const char*> targets() {
  std::vector<const char*> names;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) names.push_back(hwy::TargetName(target));
  return names;
}

void use_target(const char* name) {
  hwy::SetSupportedTargetsForTest(0);
  int64_t mask = 0;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (std::strcmp(hwy::TargetName(target), name) == 0) mask = target;
  }
  if (mask == 0 && *name != '\0') throw Error(std::string("this build or machine has no SIMD target ") + name);
  hwy::SetSupportedTargetsForTest(mask);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace gemma4::cpu
#endif
