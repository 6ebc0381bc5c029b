// Place from the environment: which of several processes is this one? Each launcher says it in variables of its own;
// main.cc's verbs ask with --one-process-per-gpu.
#pragma once

#include "distributed/control_channel.h"
#include "base/function_ref.h"

namespace gemma4 {

// The first of torchrun's, Open MPI's, MPICH's and Slurm's variables that is there says the rank; MASTER_ADDR and
// MASTER_PORT where rank 0 listens, which may be left out on one host. `variable`: as std::getenv. Throws Error where
// they are missing or contradict each other.
Place place_from(FunctionRef<const char*(const char* name)> variable);

}  // namespace gemma4
