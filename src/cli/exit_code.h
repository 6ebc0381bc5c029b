// Runs a command and turns exceptions into a message on standard error and an exit code of base/check.h.
#pragma once

#include "base/function_ref.h"

namespace gemma4 {

int exit_code_of(FunctionRef<int()> command);

}  // namespace gemma4
