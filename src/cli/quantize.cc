#include "base/check.h"
#include "cli/cli.h"

namespace gemma4 {

int quantize_command(int, char**) { throw Error("quantize is being built"); }

}  // namespace gemma4
