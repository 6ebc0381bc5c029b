#include "base/check.h"
#include "cli/cli.h"

namespace gemma4 {

int eval_command(int, char**) { throw Error("eval is being built"); }

}  // namespace gemma4
