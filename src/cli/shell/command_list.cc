// gemma4 completion SHELL and gemma4 man [COMMAND].
#include "cli/shell/command_list.h"

#include <algorithm>
#include <cstdio>

#include "base/check.h"
#include "cli/cli.h"
#include "cli/command_table.h"

namespace gemma4 {

std::vector<ListedCommand> list_commands() {
  std::vector<ListedCommand> commands;
  for (const Command& command : command_table()) {
    commands.push_back({std::string(command.name), command.what, describe(command.run), command.page});
  }
  return commands;
}

std::string brief(const std::string& help) {
  size_t end = help.size();
  for (const char* mark : {". ", "; ", " (", ", which", "\n"}) end = std::min(end, help.find(mark));
  return help.substr(0, end);
}

int completion_command(int argc, char** argv) {
  CommandLine line("gemma4 completion",
                   "Prints what a shell needs to complete gemma4's commands and options.\n\n"
                   "bash: gemma4 completion bash > ~/.local/share/bash-completion/completions/gemma4\n"
                   "zsh:  gemma4 completion zsh > _gemma4, in a folder of $fpath\n"
                   "fish: gemma4 completion fish > ~/.config/fish/completions/gemma4.fish");
  std::string shell;
  line.option("SHELL", shell, "bash, zsh or fish").one_of({"bash", "zsh", "fish"}).required();
  if (const auto code = line.parse(argc, argv)) return *code;
  std::fputs(completion_script(shell, list_commands()).c_str(), stdout);
  return kExitOk;
}

int man_command(int argc, char** argv) {
  CommandLine line("gemma4 man", "Prints the manual page of a command, or of the program: gemma4 man run | man -l -");
  std::string name;
  line.option("COMMAND", name, "A command; without one: the program's page").suggest(command_names());
  if (const auto code = line.parse(argc, argv)) return *code;
  if (!name.empty() && find_command(name) == nullptr) throw Error("there is no command '" + name + "'");
  std::fputs(manual_page(name, list_commands()).c_str(), stdout);
  return kExitOk;
}

}  // namespace gemma4
