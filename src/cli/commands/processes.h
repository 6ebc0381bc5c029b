// One process for each rank: what becomes of a command where mpirun, srun or torchrun starts it N times. Rank 0 does
// the command as ever; the others open the same model and do what rank 0's asks of them (model/rank_commands.h).
#pragma once

#include "base/function_ref.h"
#include "cli/command_line.h"
#include "engine/engine.h"

namespace gemma4 {

// --one-process-per-gpu, which excludes --gpus.
void add_processes_flag(CommandLine& line, bool& wanted);

// Calls `command` and returns its exit code, on rank 0 and where `wanted` is false. Elsewhere follows rank 0, with the
// model, backend and threads of `options`, and returns kExitOk when that has ended in order. Sets options.channel. What
// is thrown ends all the other processes with the same exit code.
int in_processes(bool wanted, EngineOptions& options, FunctionRef<int()> command);

}  // namespace gemma4
