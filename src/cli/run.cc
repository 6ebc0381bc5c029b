#include "base/check.h"
#include "cli/cli.h"

namespace gemma4 {

int run_command(int, char**) { throw Error("run is being built"); }

}  // namespace gemma4
