// The commands of the program, in the order of its help. main.cc runs them; completion and manual pages list them.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gemma4 {

struct Command {
  std::string_view name;
  const char* what;
  int (*run)(int argc, char** argv);
  bool page = true;  // false: packages hold no manual page of it; `gemma4 man` prints one
};

std::span<const Command> command_table();

// Null where there is none.
const Command* find_command(std::string_view name);

std::vector<std::string> command_names();

// Runs what the user typed after the program's name. Returns an exit code or throws Error.
int dispatch(int argc, char** argv);

// "gemma4 0.1.0", and what this build has, a line each.
std::string version_text();

}  // namespace gemma4
