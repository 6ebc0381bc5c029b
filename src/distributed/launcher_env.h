// ProcessInfo from the environment: which of several processes is this one? Each launcher says it in variables of its
// own; main.cc's ops ask with --one-process-per-gpu.
#pragma once

#include "base/function_ref.h"
#include "distributed/control_channel.h"

namespace gemma4 {

// The first of torchrun's, Open MPI's, MPICH's and Slurm's variables that is there says the rank; MASTER_ADDR and
// MASTER_PORT where rank 0 listens, which may be left out on one host. `variable`: as std::getenv. Throws Error where
// they are missing or contradict each other.
ProcessInfo process_info_from_environment(FunctionRef<const char*(const char* name)> variable);

}  // namespace gemma4
