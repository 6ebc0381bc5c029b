#include "cli/exit_code.h"

#include <cstdio>
#include <exception>
#include <new>

#include "base/check.h"
#include "base/json_text.h"

namespace gemma4 {

int exit_code_of(FunctionRef<int()> command) {
  try {
    return command();
  } catch (const DeviceError& error) {
    std::fprintf(stderr, "gemma4: %s\n", error.what());
    return kExitDevice;
  } catch (const Error& error) {
    std::fprintf(stderr, "gemma4: %s\n", error.what());
    return kExitBadInput;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "gemma4: out of memory\n");
  } catch (const std::exception& error) {  // of the standard library, as for a path that cannot be looked at
    std::fprintf(stderr, "gemma4: %s\n", json_complaint(error).c_str());
  }
  return kExitBadInput;
}

}  // namespace gemma4
