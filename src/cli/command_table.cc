#include "cli/command_table.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "base/check.h"
#include "cli/cli.h"
#include "cli/nearest.h"
#include "cli/terminal/line_editor.h"

namespace gemma4 {
namespace {

constexpr Command kCommands[] = {
    {"run", "answer a prompt, with or without pictures, or chat", run_command},
    {"serve", "serve OpenAI's and Anthropic's APIs over HTTP, and a page to chat on", serve_command},
    {"quantize", "turn a Hugging Face checkpoint into a quantised one, once", quantize_command},
    {"inspect", "show what a checkpoint holds and whether it can run", inspect_command},
    {"diff", "measure the error between two checkpoints, tensor by tensor", diff_command},
    {"eval", "compare this program with reference outputs", eval_command},
    {"export", "write a checkpoint for another program, or as a program of its own", export_command},
    {"bench", "measure how fast a checkpoint runs here", bench_command},
    {"synth", "write a full-size checkpoint of random weights, to measure with", synth_command},
    {"completion", "print what bash, zsh or fish needs to complete gemma4's options", completion_command, false},
    {"man", "print a manual page", man_command, false},
};

int usage(FILE* out) {
  std::fprintf(out, "gemma4: run Google's Gemma 4 31B on one machine\n\nusage: gemma4 COMMAND [OPTIONS]\n\n");
  for (const Command& command : kCommands) {
    if (command.listed) std::fprintf(out, "  %-10s %s\n", command.name.data(), command.what);
  }
  std::fprintf(
      out,
      "\n`gemma4 COMMAND --help`, or `gemma4 help COMMAND`, lists the options of a command; `gemma4 --version` "
      "says what this is.\n");
  return out == stdout ? kExitOk : kExitBadInput;
}

int unknown(std::string_view name) {
  std::vector<std::string> names = {"help", "version", "--help", "--version"};
  for (const Command& command : kCommands) names.emplace_back(command.name);
  const std::string near = nearest(name, names), word(name);
  if (!near.empty()) {
    std::fprintf(stderr, "gemma4: there is no command '%s'; did you mean %s?\n", word.c_str(), near.c_str());
    return kExitBadInput;
  }
  std::fprintf(stderr, "gemma4: there is no command '%s'\n\n", word.c_str());
  return usage(stderr);
}

int help(int argc, char** argv) {
  if (argc < 3) return usage(stdout);
  const Command* command = find_command(argv[2]);
  if (command == nullptr) return unknown(argv[2]);
  char option[] = "--help";
  char* words[] = {argv[2], option, nullptr};
  return command->run(2, words);
}

}  // namespace

std::span<const Command> command_table() { return kCommands; }

const Command* find_command(std::string_view name) {
  const auto found = std::ranges::find(kCommands, name, &Command::name);
  return found == std::end(kCommands) ? nullptr : found;
}

int dispatch(int argc, char** argv) {
  if (argc < 2) return usage(stderr);
  const std::string_view name = argv[1];
  if (name == "--help" || name == "-h" || name == "help") return help(argc, argv);
  if (name == "--version" || name == "-V" || name == "version") {
    std::printf("%s", version_text().c_str());
    return kExitOk;
  }
  const Command* command = find_command(name);
  return command != nullptr ? command->run(argc - 1, argv + 1) : unknown(name);
}

#ifndef GEMMA4_VERSION
#define GEMMA4_VERSION "of an unknown version"
#endif

std::string version_text() {
  std::string text = "gemma4 " GEMMA4_VERSION "\n";
#ifdef GEMMA4_CUDA
  text += "backends: cuda, cpu, ref\n";
#else
  text += "backends: cpu, ref\n";
#endif
  const std::string editor = line_editor_name();
  return text + "line editing: " + (editor.empty() ? "none (built without libedit)" : editor) + "\n";
}

}  // namespace gemma4
