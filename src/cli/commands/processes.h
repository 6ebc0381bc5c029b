// Multi-process runs: one process for each rank, started by mpirun, srun or torchrun with the same options. Rank 0 runs
// the command. The other processes are workers: they open the same model and execute the commands that rank 0 sends
// (model/rank_commands.h).
#pragma once

#include "base/function_ref.h"
#include "cli/command_line.h"
#include "engine/engine.h"

namespace gemma4 {

struct ProcessesFlags {
  bool wanted = false;       // --one-process-per-gpu, which excludes --gpus
  double rank_timeout = 60;  // --rank-timeout, in seconds
};

void add_processes_flags(CommandLine& line, ProcessesFlags& flags);

// On rank 0, and if `flags.wanted` is false, calls `command` and returns its exit code. In the other processes runs a
// worker with the model, backend and threads of `options`, and returns kExitOk when rank 0 has ended normally. Sets
// options.channel. An exception ends all other processes with the same exit code.
int run_on_rank_0(const ProcessesFlags& flags, EngineOptions& options, FunctionRef<int()> command);

}  // namespace gemma4
