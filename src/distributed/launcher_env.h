// ProcessInfo from the environment: which of several processes is this one? Each launcher has its own variables. The
// commands read them with --one-process-per-gpu.
#pragma once

#include "base/function_ref.h"
#include "distributed/control_channel.h"

namespace gemma4 {

// The rank comes from the first that is set of torchrun's, Open MPI's, MPICH's and Slurm's variables. MASTER_ADDR and
// MASTER_PORT say where rank 0 listens; they may be left out on one host. GEMMA4_RENDEZVOUS_TOKEN is the token of the
// job (rendezvous_token.h). `variable`: as std::getenv. Throws Error if variables are missing or contradict each other.
ProcessInfo process_info_from_environment(FunctionRef<const char*(const char* name)> variable);

}  // namespace gemma4
