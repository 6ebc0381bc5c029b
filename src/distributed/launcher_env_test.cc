// ProcessInfo from the variables of each launcher, and variables that are refused.
#include "distributed/launcher_env.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "base/check.h"

namespace gemma4 {
namespace {

using Variables = std::map<std::string, std::string>;

ProcessInfo place_of(const Variables& variables) {
  return process_info_from_environment([&](const char* name) -> const char* {
    const auto at = variables.find(name);
    return at == variables.end() ? nullptr : at->second.c_str();
  });
}

std::string describe(const Variables& variables) {
  const ProcessInfo p = place_of(variables);
  return std::to_string(p.rank) + "/" + std::to_string(p.world) + ", here " + std::to_string(p.local_rank) + "/" +
         std::to_string(p.local_world) + ", " + p.address + ":" + std::to_string(p.port);
}

std::string refusal(const Variables& variables) {
  try {
    return describe(variables);
  } catch (const Error& error) {
    return error.what();
  }
}

const Variables kTorch = {{"RANK", "1"},
                          {"WORLD_SIZE", "2"},
                          {"LOCAL_RANK", "1"},
                          {"LOCAL_WORLD_SIZE", "2"},
                          {"MASTER_ADDR", "127.0.0.1"},
                          {"MASTER_PORT", "29500"}};

Variables with(Variables variables, const Variables& more) {
  for (const auto& [name, value] : more) variables[name] = value;
  return variables;
}

TEST(ProcessInfo, OfEachLauncher) {
  EXPECT_EQ(describe(kTorch), "1/2, here 1/2, 127.0.0.1:29500");
  EXPECT_EQ(describe(with(kTorch, {{"TORCHELASTIC_USE_AGENT_STORE", "True"}})), "1/2, here 1/2, 127.0.0.1:29501");
  EXPECT_EQ(describe({{"RANK", "3"}, {"WORLD_SIZE", "4"}}), "3/4, here 3/4, 127.0.0.1:29400");
  EXPECT_EQ(describe({{"OMPI_COMM_WORLD_RANK", "5"},
                      {"OMPI_COMM_WORLD_SIZE", "8"},
                      {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                      {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                      {"MASTER_ADDR", "node-0"},
                      {"MASTER_PORT", "7000"},
                      {"SLURM_PROCID", "0"}}),
            "5/8, here 1/4, node-0:7000");
  EXPECT_EQ(describe({{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "0"}, {"MPI_LOCALNRANKS", "2"}}),
            "0/2, here 0/2, 127.0.0.1:29400");
  EXPECT_EQ(describe({{"SLURM_PROCID", "3"},
                      {"SLURM_NTASKS", "4"},
                      {"SLURM_LOCALID", "1"},
                      {"SLURM_NNODES", "2"},
                      {"MASTER_ADDR", "n1"}}),
            "3/4, here 1/2, n1:29400");
  EXPECT_EQ(describe({{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}, {"SLURM_LOCALID", "1"}, {"SLURM_NNODES", "1"}}),
            "1/2, here 1/2, 127.0.0.1:29400");
}

TEST(ProcessInfo, SeveralHostsNeedAnAddress) {
  const Variables slurm = {
      {"SLURM_PROCID", "3"}, {"SLURM_NTASKS", "4"}, {"SLURM_LOCALID", "1"}, {"SLURM_JOB_NUM_NODES", "2"}};
  const std::string missing =
      "the processes lie on several hosts, and the variable MASTER_ADDR is missing: set it to the name or address of "
      "rank 0's host, for all processes";
  EXPECT_EQ(refusal(slurm), missing);
  EXPECT_NE(refusal(with(slurm, {{"MASTER_ADDR", "localhost"}})).find("MASTER_ADDR is localhost"), std::string::npos);
  EXPECT_EQ(refusal({{"OMPI_COMM_WORLD_RANK", "1"},
                     {"OMPI_COMM_WORLD_SIZE", "2"},
                     {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                     {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}}),
            missing);
  EXPECT_EQ(refusal({{"RANK", "2"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "0"}}), missing);
}

TEST(ProcessInfo, RefusesWhatIsMissingOrContradictsItself) {
  EXPECT_EQ(refusal({}).substr(0, 55), "--one-process-per-gpu is for processes that mpirun, sru");
  EXPECT_EQ(refusal({{"WORLD_SIZE", "2"}}).substr(0, 22), "--one-process-per-gpu ");
  EXPECT_EQ(refusal({{"RANK", "0"}}), "the variable RANK is set, but WORLD_SIZE is not");
  EXPECT_EQ(refusal(with(kTorch, {{"RANK", "2"}})), "the variable RANK is 2, but WORLD_SIZE is 2");
  EXPECT_EQ(refusal(with(kTorch, {{"LOCAL_RANK", "2"}})), "the variable LOCAL_RANK is 2, but WORLD_SIZE is 2");
  EXPECT_EQ(refusal(with(kTorch, {{"LOCAL_WORLD_SIZE", "3"}})),
            "the variable LOCAL_WORLD_SIZE is 2, but WORLD_SIZE is 2");
  for (const std::string bad : {"-1", "one", "1 ", "0x1", "99999999999", "1.0"}) {
    EXPECT_EQ(refusal(with(kTorch, {{"RANK", bad}})),
              "the variable RANK is '" + bad + "' and not a number from 0 to 4096");
  }
  EXPECT_NE(refusal(with(kTorch, {{"WORLD_SIZE", "0"}})).find("WORLD_SIZE is '0'"), std::string::npos);
  EXPECT_NE(refusal(with(kTorch, {{"MASTER_PORT", "0"}})).find("MASTER_PORT is '0'"), std::string::npos);
  EXPECT_NE(refusal(with(kTorch, {{"MASTER_PORT", "65536"}})).find("MASTER_PORT is '65536'"), std::string::npos);
  EXPECT_EQ(refusal({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "node-0"}}),
            "the variable LOCAL_RANK is missing, which says the GPU of this process");
}

TEST(ProcessInfo, TheTokenIsLongEnough) {
  Variables variables = kTorch;
  EXPECT_EQ(place_of(variables).token, "");
  variables["GEMMA4_RENDEZVOUS_TOKEN"] = "0123456789abcdef";
  EXPECT_EQ(place_of(variables).token, "0123456789abcdef");
  variables["GEMMA4_RENDEZVOUS_TOKEN"] = "short";
  EXPECT_EQ(refusal(variables),
            "the variable GEMMA4_RENDEZVOUS_TOKEN has fewer than 16 characters, which can be guessed");
}

}  // namespace
}  // namespace gemma4
