// The inputs and outputs of a program's methods. They follow from the model and the program's constants, and are
// written to program.json for readers.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/config.h"
#include "program/program.h"

namespace gemma4 {

// The limits of a program, which are among its constants.
struct ProgramLimits {
  int max_seq_len = 0;
  int chunk = 0;     // rows of one prefill; the ring of sliding layers holds the window and these
  int soft_max = 0;  // soft tokens of the largest picture; 0: no vision
};

std::vector<MethodSpec> methods_of(const Config& config, const ProgramLimits& limits);
std::string methods_json(const std::vector<MethodSpec>& methods);

std::vector<std::pair<std::string, int64_t>> constants_of(const Config& config, const ProgramLimits& limits);

// The limits in the constants. Throws Error if they contradict each other or the model; `what` names the program.
ProgramLimits limits_of(const std::map<std::string, int64_t>& constants, const Config& config, const std::string& what);

}  // namespace gemma4
