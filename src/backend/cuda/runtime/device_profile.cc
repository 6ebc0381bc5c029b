#include "backend/cuda/runtime/device_profile.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>

#include "backend/cuda/runtime/error.h"
#include "base/check.h"

namespace gemma4::cuda {
namespace {

struct Known {
  const char* name;
  int shared_kb;
  bool bulk_copies, wgmma;
};

// Shared memory of a CTA: 163 KB on 8.0 and 8.7, 227 on 9.0 and 10.x, 99 on the cards that people have at home.
constexpr std::array<Known, 6> kKnown = {{{"sm80", 163, false, false},
                                          {"sm86", 99, false, false},
                                          {"sm89", 99, false, false},
                                          {"sm90", 227, true, true},
                                          {"sm100", 227, true, false},
                                          {"sm120", 99, true, false}}};

DeviceProfile made(const Known& known) {
  DeviceProfile profile;
  profile.name = known.name;
  profile.shared_max = profile.shared_card = known.shared_kb << 10;
  profile.bulk_copies = profile.dependent_launch = known.bulk_copies;
  profile.wgmma = known.wgmma;
  return profile;
}

const char* name_of(int major, int minor) {
  if (major == 8) return minor == 0 || minor == 7 ? "sm80" : minor == 9 ? "sm89" : "sm86";
  if (major == 9) return "sm90";
  return major < 12 ? "sm100" : "sm120";
}

}  // namespace

DeviceProfile profile_of(int major, int minor) {
  if (major < 8) {
    throw Error("the GPU has compute capability " + std::to_string(major) + "." + std::to_string(minor) +
                "; 8.0 or more is needed (--backend cpu works without it)");
  }
  const std::string name = name_of(major, minor);
  return made(*std::ranges::find_if(kKnown, [&](const Known& known) { return name == known.name; }));
}

int shared_claim(const DeviceProfile& profile, int bytes) {
  return static_cast<int>(int64_t{bytes} * profile.shared_card / profile.shared_max);
}

DeviceProfile lowered(const DeviceProfile& card, const std::string& to) {
  if (to.empty()) return card;
  const std::string name = to.substr(0, to.find(':')), sms = to.substr(std::min(name.size() + 1, to.size()));
  const auto known = std::ranges::find_if(kKnown, [&](const Known& one) { return name == one.name; });
  const bool number = !sms.empty() && sms.size() < 5 && sms.find_first_not_of("0123456789") == std::string::npos;
  if (known == kKnown.end() || (name != to && (!number || std::stoi(sms) == 0))) {
    throw Error("GEMMA4_CUDA_PROFILE is '" + to +
                "'; it can be sm80, sm86, sm89, sm90, sm100 or sm120, and sm86:82 for one with 82 SMs");
  }
  DeviceProfile profile = made(*known);
  profile.sms = number ? std::min(std::stoi(sms), card.sms) : card.sms;
  profile.shared_max = std::min(profile.shared_max, card.shared_max);
  profile.shared_card = card.shared_max;
  profile.bulk_copies = profile.bulk_copies && card.bulk_copies;
  profile.wgmma = profile.wgmma && card.wgmma;
  profile.dependent_launch = profile.dependent_launch && card.dependent_launch;
  return profile;
}

DeviceProfile device_profile(int device) {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  DeviceProfile card = profile_of(properties.major, properties.minor);
  card.sms = properties.multiProcessorCount;
  card.shared_max = card.shared_card = static_cast<int>(properties.sharedMemPerBlockOptin);
  const char* name = std::getenv("GEMMA4_CUDA_PROFILE");
  return lowered(card, name ? name : "");
}

}  // namespace gemma4::cuda
