// gemma4: the program. command_table.h has its commands.
#include <unistd.h>

#include <csignal>

#include "base/mapped_file.h"
#include "cli/command_table.h"
#include "cli/exit_code.h"

namespace gemma4 {
namespace {

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
