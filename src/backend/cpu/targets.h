// Which SIMD targets the cpu backend was compiled for, for the tests that run each of them.
#pragma once

#include <vector>

namespace gemma4::cpu {

// Names of the targets compiled in that this machine can run, best first.
std::vector<const char*> targets();

// From now on kernels run this target; an empty name: the best again. Throws Error for a target not in targets().
void use_target(const char* name);

const char* running_target();  // asks a kernel what it was compiled for

}  // namespace gemma4::cpu
