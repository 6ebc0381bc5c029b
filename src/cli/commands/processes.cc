#include "cli/commands/processes.h"

#include <csignal>
#include <cstdlib>

#include "base/check.h"
#include "distributed/launcher_env.h"
#include "model/rank_commands.h"

namespace gemma4 {
namespace {

constexpr std::chrono::seconds kRendezvousTimeout{60};

// Workers ignore signals: a launcher sends them to every process, and rank 0 decides what to do.
int run_worker(const EngineOptions& options) {
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGTERM, SIG_IGN);
  const Checkpoint checkpoint = open_checkpoint(options.model, options.mmproj);
  const Ranks ranks = make_ranks(options.backend, options.threads, 1, options.channel);
  worker_loop(checkpoint, ranks);
  return kExitOk;
}

}  // namespace

void add_processes_flag(CommandLine& line, bool& wanted) {
  line.flag("--one-process-per-gpu", wanted,
            "This process is one of several that mpirun, srun or torchrun starts with the same options, each with "
            "a GPU; on several hosts they find rank 0 by the variables MASTER_ADDR and MASTER_PORT")
      .excludes("--gpus");
}

int run_on_rank_0(bool wanted, EngineOptions& options, FunctionRef<int()> command) {
  if (!wanted) return command();
  const ProcessInfo process =
      process_info_from_environment([](const char* name) -> const char* { return std::getenv(name); });
  if (process.world == 1) return command();
  const std::shared_ptr<ControlChannel> channel = ControlChannel::rendezvous(process, kRendezvousTimeout);
  options.channel = channel;
  try {
    const int code = process.rank == 0 ? command() : run_worker(options);
    channel->end();
    return code;
  } catch (const DeviceError& error) {
    channel->fail(kExitDevice, error.what());
    throw;
  } catch (const std::exception& error) {
    channel->fail(kExitBadInput, error.what());
    throw;
  }
}

}  // namespace gemma4
