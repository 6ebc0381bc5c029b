// Multi-process runs: one process for each rank, started by mpirun, srun or torchrun with the same options. Rank 0 runs
// the command. The other processes are workers: they open the same model and execute the commands that rank 0 sends
// (model/rank_commands.h).
#pragma once

#include "base/function_ref.h"
#include "cli/command_line.h"
#include "engine/engine.h"

namespace gemma4 {

// --one-process-per-gpu, which excludes --gpus.
void add_processes_flag(CommandLine& line, bool& wanted);

// On rank 0, and if `wanted` is false, calls `command` and returns its exit code. In the other processes runs a worker
// with the model, backend and threads of `options`, and returns kExitOk when rank 0 has ended normally. Sets
// options.channel. An exception ends all other processes with the same exit code.
int run_on_rank_0(bool wanted, EngineOptions& options, FunctionRef<int()> command);

}  // namespace gemma4
