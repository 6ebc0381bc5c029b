#include "distributed/launcher_env.h"

#include <charconv>
#include <cstring>
#include <optional>
#include <string>

#include "base/check.h"
#include "distributed/rendezvous_token.h"

namespace gemma4 {
namespace {

using Variable = FunctionRef<const char*(const char* name)>;

constexpr int kPort = 29400;
constexpr int kWorldMost = 4096;

// Each launcher's names; null: it does not say.
struct Launcher {
  const char *rank, *world, *local_rank, *local_world;
};

constexpr Launcher kLaunchers[] = {
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},  // torchrun
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},  // MPICH, Intel MPI
    {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", nullptr},
};

const char* set_or_null(Variable variable, const char* name) {
  const char* value = name == nullptr ? nullptr : variable(name);
  return value == nullptr || *value == '\0' ? nullptr : value;
}

std::optional<int> number(Variable variable, const char* name, int least, int most) {
  const char* value = set_or_null(variable, name);
  if (value == nullptr) return std::nullopt;
  int result = 0;
  const char* end = value + std::strlen(value);
  const auto read = std::from_chars(value, end, result);
  if (read.ec != std::errc() || read.ptr != end || result < least || result > most) {
    throw Error("the variable " + std::string(name) + " is '" + value + "' and not a number from " +
                std::to_string(least) + " to " + std::to_string(most));
  }
  return result;
}

const Launcher& find_launcher(Variable variable) {
  for (const Launcher& launcher : kLaunchers) {
    if (set_or_null(variable, launcher.rank) != nullptr) return launcher;
  }
  throw Error(
      "--one-process-per-gpu is for processes that mpirun, srun or torchrun starts, and none of their variables is set "
      "(RANK and WORLD_SIZE, OMPI_COMM_WORLD_RANK, PMI_RANK, SLURM_PROCID); on one host --gpus N needs no launcher");
}

void need_below(const char* name, int value, const char* of, int limit) {
  if (value < limit) return;
  throw Error("the variable " + std::string(name) + " is " + std::to_string(value) + ", but " + of + " is " +
              std::to_string(limit));
}

// Processes of this host, where the environment says so.
std::optional<int> local_world(Variable variable, const Launcher& launcher, int world) {
  if (const auto count = number(variable, launcher.local_world, 1, kWorldMost)) {
    need_below(launcher.local_world, *count - 1, launcher.world, world);
    return count;
  }
  for (const char* name : {"SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"}) {
    if (const auto hosts = number(variable, name, 1, kWorldMost)) return (world + *hosts - 1) / *hosts;
  }
  return std::nullopt;
}

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address == "localhost" || address == "::1";
}

// torchrun itself listens at MASTER_PORT.
int port_of(Variable variable) {
  const int port = number(variable, "MASTER_PORT", 1, 65534).value_or(kPort);
  const char* taken = set_or_null(variable, "TORCHELASTIC_USE_AGENT_STORE");
  return taken != nullptr && std::strcmp(taken, "True") == 0 ? port + 1 : port;
}

std::string token_of(Variable variable) {
  const char* token = set_or_null(variable, kTokenVariable);
  if (token == nullptr) return "";
  if (std::strlen(token) >= kTokenLeast) return token;
  throw Error("the variable " + std::string(kTokenVariable) + " has fewer than " + std::to_string(kTokenLeast) +
              " characters, which can be guessed");
}

}  // namespace

ProcessInfo process_info_from_environment(Variable variable) {
  const Launcher& launcher = find_launcher(variable);
  const auto world = number(variable, launcher.world, 1, kWorldMost);
  if (!world) throw Error("the variable " + std::string(launcher.rank) + " is set, but " + launcher.world + " is not");
  ProcessInfo process;
  process.world = *world;
  process.rank = *number(variable, launcher.rank, 0, kWorldMost);
  need_below(launcher.rank, process.rank, launcher.world, process.world);
  const char* address = set_or_null(variable, "MASTER_ADDR");
  if (address != nullptr) process.address = address;
  process.port = port_of(variable);
  process.token = token_of(variable);

  auto local_rank = number(variable, launcher.local_rank, 0, kWorldMost);
  if (!local_rank) local_rank = number(variable, "SLURM_LOCALID", 0, kWorldMost);
  const auto here = local_world(variable, launcher, process.world);
  const bool several_hosts = here ? *here < process.world : local_rank && *local_rank != process.rank;
  if (several_hosts && is_loopback(process.address)) {
    throw Error("the processes lie on several hosts, and the variable MASTER_ADDR " +
                (address == nullptr ? std::string("is missing") : "is " + process.address) +
                ": set it to the name or address of rank 0's host, for all processes");
  }
  if (!local_rank && !is_loopback(process.address)) {
    throw Error("the variable " + std::string(launcher.local_rank) + " is missing, which says the GPU of this process");
  }
  process.local_rank = local_rank.value_or(process.rank);
  need_below(launcher.local_rank, process.local_rank, launcher.world, process.world);
  process.local_world = here.value_or(several_hosts ? 1 : process.world);
  return process;
}

}  // namespace gemma4
