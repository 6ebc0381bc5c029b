// CommandList: what completion scripts and manual pages are made of: each command with its options, as it declares them
// to CommandLine.
#pragma once

#include <string>
#include <vector>

#include "cli/command_line.h"

namespace gemma4 {

struct ListedCommand {
  std::string name, what;
  CommandInfo info;
  bool page = true;  // Command::page
};

std::vector<ListedCommand> list_commands();

// "bash", "zsh" or "fish"; throws Error for another shell.
std::string completion_script(const std::string& shell, const std::vector<ListedCommand>& commands);

// In man(7)'s macros. `name`: a command, or "" for the page of the program.
std::string manual_page(const std::string& name, const std::vector<ListedCommand>& commands);

// The help as one short line: up to the first full stop, semicolon or parenthesis.
std::string brief(const std::string& help);

}  // namespace gemma4
