// The SIMD targets that the cpu backend was compiled for, for tests that run each of them.
#pragma once

#include <vector>

namespace gemma4::cpu {

// Names of the targets compiled in that this machine can run, best first.
std::vector<const char*> targets();

// Kernels run this target from now on; with an empty name, the best one. Throws Error if it is not in targets().
void use_target(const char* name);

const char* running_target();  // asks a kernel what it was compiled for

}  // namespace gemma4::cpu
