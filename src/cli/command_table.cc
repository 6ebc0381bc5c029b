#include "cli/command_table.h"

#include <algorithm>
#include <cstdio>

#include "base/check.h"
#include "cli/cli.h"
#include "cli/command_line.h"
#include "cli/nearest.h"
#include "cli/terminal/line_editor.h"

namespace gemma4 {
namespace {

int help_command(int argc, char** argv);
int version_command(int argc, char** argv);

constexpr Command kCommands[] = {
    {"run", "answer a prompt, with or without pictures, or chat", run_command},
    {"serve", "serve OpenAI's, Anthropic's and Ollama's APIs over HTTP, and a page to chat on", serve_command},
    {"quantize", "turn a Hugging Face checkpoint into a quantised one, once", quantize_command},
    {"inspect", "show what a checkpoint holds and whether it can run", inspect_command},
    {"diff", "measure the error between two checkpoints, tensor by tensor", diff_command},
    {"eval", "compare this program with reference outputs", eval_command},
    {"export", "write a checkpoint for another program, or as a program of its own", export_command},
    {"bench", "measure how fast a checkpoint runs here", bench_command},
    {"synth", "write a full-size checkpoint of random weights, to measure with", synth_command},
    {"completion", "print what bash, zsh or fish needs to complete gemma4's options", completion_command},
    {"man", "print a manual page", man_command},
    {"help", "list the commands, or the options of one", help_command, false},
    {"version", "print the version, and what this build has", version_command, false},
};

int usage(FILE* out) {
  std::fprintf(out, "gemma4: run Google's Gemma 4 31B on one machine\n\nusage: gemma4 COMMAND [OPTIONS]\n\n");
  for (const Command& command : kCommands) std::fprintf(out, "  %-11s %s\n", command.name.data(), command.what);
  std::fprintf(out, "\n`gemma4 COMMAND --help`, or `gemma4 help COMMAND`, lists the options of a command.\n");
  return out == stdout ? kExitOk : kExitBadInput;
}

// What the word is near to: a command, or an option in place of one.
std::string meant_by(const std::string& word) {
  if (word == "-v") return "--version";
  if (word == "-H" || word == "-?") return "--help";
  std::vector<std::string> names = command_names();
  names.insert(names.end(), {"--help", "--version"});
  return nearest(word, names);
}

int unknown(const std::string& word) {
  const char* kind = word.starts_with("-") ? "option" : "command";
  const std::string near = meant_by(word);
  if (!near.empty()) {
    std::fprintf(stderr, "gemma4: there is no %s '%s'; did you mean %s?\n", kind, word.c_str(), near.c_str());
    return kExitBadInput;
  }
  std::fprintf(stderr, "gemma4: there is no %s '%s'\n\n", kind, word.c_str());
  return usage(stderr);
}

int help_command(int argc, char** argv) {
  CommandLine line(std::string("gemma4 ") + argv[0], "Lists the commands, or the options of one.");
  std::string name;
  line.option("COMMAND", name, "A command; without one: the list of commands").suggest(command_names());
  if (const auto code = line.parse(argc, argv)) return *code;
  if (name.empty() || name == "help") return usage(stdout);
  const Command* command = find_command(name);
  if (command == nullptr) return unknown(name);
  char option[] = "--help";
  char* words[] = {name.data(), option, nullptr};
  return command->run(2, words);
}

int version_command(int argc, char** argv) {
  CommandLine line(std::string("gemma4 ") + argv[0], "Prints the version, and what this build has.");
  if (const auto code = line.parse(argc, argv)) return *code;
  std::printf("%s", version_text().c_str());
  return kExitOk;
}

}  // namespace

std::span<const Command> command_table() { return kCommands; }

const Command* find_command(std::string_view name) {
  const auto found = std::ranges::find(kCommands, name, &Command::name);
  return found == std::end(kCommands) ? nullptr : found;
}

std::vector<std::string> command_names() {
  std::vector<std::string> names;
  for (const Command& command : kCommands) names.emplace_back(command.name);
  return names;
}

int dispatch(int argc, char** argv) {
  if (argc < 2) return usage(stderr);
  const std::string_view name = argv[1];
  if (name == "--help" || name == "-h") return help_command(argc - 1, argv + 1);
  if (name == "--version" || name == "-V") return version_command(argc - 1, argv + 1);
  const Command* command = find_command(name);
  return command != nullptr ? command->run(argc - 1, argv + 1) : unknown(argv[1]);
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
