#include "base/check.h"
#include "cli/cli.h"

namespace gemma4 {

int inspect_command(int, char**) { throw Error("inspect is being built"); }

}  // namespace gemma4
