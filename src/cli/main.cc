// gemma4: the table of commands.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <string_view>

#include "base/check.h"
#include "base/mapped_file.h"
#include "cli/cli.h"
#include "cli/exit_code.h"

namespace gemma4 {
namespace {

struct Command {
  std::string_view name;
  const char* what;
  int (*run)(int argc, char** argv);
};

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
};

int usage(FILE* out) {
  std::fprintf(out, "gemma4: run Google's Gemma 4 31B on one machine\n\nusage: gemma4 COMMAND [OPTIONS]\n\n");
  for (const Command& command : kCommands) std::fprintf(out, "  %-10s %s\n", command.name.data(), command.what);
  std::fprintf(out, "\n`gemma4 COMMAND --help` lists the options of a command.\n");
  return out == stdout ? kExitOk : kExitBadInput;
}

int dispatch(int argc, char** argv) {
  if (argc < 2) return usage(stderr);
  const std::string_view name = argv[1];
  if (name == "--help" || name == "-h" || name == "help") return usage(stdout);
  for (const Command& command : kCommands) {
    if (command.name == name) return command.run(argc - 1, argv + 1);
  }
  std::fprintf(stderr, "gemma4: there is no command '%s'\n\n", argv[1]);
  return usage(stderr);
}

// The first process of a container has no default action for signals: without a handler they do nothing.
void end_by_signals_in_a_container() {
  if (getpid() != 1) return;
  for (const int signal : {SIGINT, SIGTERM}) {
    std::signal(signal, [](int number) { _exit(128 + number); });
  }
}

}  // namespace
}  // namespace gemma4

int main(int argc, char** argv) {
  gemma4::end_by_signals_in_a_container();
  return gemma4::exit_code_of([&] {
    gemma4::handle_lost_pages(gemma4::LostPages::kExit);
    return gemma4::dispatch(argc, argv);
  });
}
