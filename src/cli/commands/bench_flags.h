// What `gemma4 bench` is told to measure, and what it measures where it is not told.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "cli/command_line.h"
#include "cli/commands/bench_drafts.h"
#include "cli/commands/processes.h"
#include "engine/engine.h"

namespace gemma4 {

struct BenchFlags {
  BenchFlags();

  EngineOptions engine;  // model, backend, threads, GPUs
  std::string dump;
  int chunk = 2048, steps = 32, repeat = 3;
  std::vector<int> prompts, depths, batches = {1, 2, 4, 8}, images;  // the constructor's are for a GPU
  bool json = false, profile = false, load = false, force = false;
  BenchDraftFlags drafts;
  ProcessesFlags processes;

  int rows_max() const {  // of a step
    const int seqs = *std::max_element(batches.begin(), batches.end());
    return drafts.tokens == 0 ? chunk
                              : std::max(chunk, seqs * (1 + drafts.tokens)) + 2;  // a drafter's window is longer
  }
};

void add_bench_flags(CommandLine& line, BenchFlags& flags);

// Lengths and pictures that were not given become those for a CPU.
void shorten_for_cpu(BenchFlags& flags);

// Of prompts or depths: such are left out where they do not fit in memory.
bool are_default_lengths(const std::vector<int>& lengths);

}  // namespace gemma4
