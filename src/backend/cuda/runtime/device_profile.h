// What a GPU can do, as far as a choice of a kernel depends on it. Every choice reads this and nothing else of the
// device. The variable GEMMA4_CUDA_PROFILE lowers the card at hand to an older one's abilities, so that the kernels of
// older cards can be tested and timed on a newer one. It cannot raise them.
// Source of the figures: CUDA C++ Programming Guide, "Compute Capabilities".
#pragma once

#include <string>

namespace gemma4::cuda {

struct DeviceProfile {
  std::string name = "sm90";     // sm80, sm86, sm89, sm90, sm100, sm120
  int sms = 132;                 // SMs
  int shared_max = 227 << 10;    // bytes of shared memory that a CTA may have
  int shared_card = 227 << 10;   // the same of the card at hand, which has more where it is lowered
  bool bulk_copies = true;       // TMA bulk copies into shared memory (9.0 and later); else cp.async
  bool wgmma = true;             // warpgroup MMA (9.0 alone); else mma.sync
  bool dependent_launch = true;  // programmatic dependent launch (9.0 and later)
};

// The profile of compute capability major.minor. Throws Error below 8.0.
DeviceProfile profile_of(int major, int minor);

// Dynamic shared memory that a launch asks for: where the card at hand is lowered, as large a part of its shared memory
// as `bytes` are of the older card's, so that as many CTAs share an SM as there.
int shared_claim(const DeviceProfile& profile, int bytes);

// What `card` can still do when it is lowered to `to`: a profile's name, or "sm86:82" for one with so many SMs; the
// card itself where it is empty. Throws Error for anything else.
DeviceProfile lowered(const DeviceProfile& card, const std::string& to);

// Of device `device`, lowered by GEMMA4_CUDA_PROFILE. Throws Error as the two above, DeviceError if CUDA fails.
DeviceProfile device_profile(int device);

}  // namespace gemma4::cuda
