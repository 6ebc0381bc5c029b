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
  const Checkpoint checkpoint = open_checkpoint(options.model, options.mmproj, options.vision);
  const Ranks ranks = make_ranks(options.backend, options.threads, 1, options.channel);
  worker_loop(checkpoint, ranks);
  return kExitOk;
}

}  // namespace

void add_processes_flags(CommandLine& line, ProcessesFlags& flags) {
  line.flag("--one-process-per-gpu", flags.wanted,
            "This process is one of several that mpirun, srun or torchrun starts with the same options, each with "
            "a GPU; on several hosts they find rank 0 by the variables MASTER_ADDR and MASTER_PORT, and share a secret "
            "in GEMMA4_RENDEZVOUS_TOKEN")
      .excludes("--gpus");
  line.option("--rank-timeout", flags.rank_timeout,
              "With --one-process-per-gpu: seconds after which a process that is not heard of ends all")
      .between(1.0, 86400.0)
      .show_default()
      .needs("--one-process-per-gpu");
}

int run_on_rank_0(const ProcessesFlags& flags, EngineOptions& options, FunctionRef<int()> command) {
  if (!flags.wanted) return command();
  if (!options.gpu_layers.empty()) {
    throw Error("--one-process-per-gpu splits each layer: leave it away, or --gpu-layers");
  }
  ProcessInfo process =
      process_info_from_environment([](const char* name) -> const char* { return std::getenv(name); });
  if (process.world == 1) return command();
  process.rank_timeout = std::chrono::milliseconds(static_cast<int64_t>(flags.rank_timeout * 1000));
  const std::shared_ptr<ControlChannel> channel = ControlChannel::rendezvous(process, kRendezvousTimeout);
  options.channel = channel;
  try {
    const int code = process.rank == 0 ? command() : run_worker(options);
    channel->end();
    channel->throw_if_failed();
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
