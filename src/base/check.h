// The two ways to fail. `Error`: the world is wrong (a file, a request, memory, a device); it is thrown, names the
// thing that is wrong and what to do, and ends as exit code 2 or HTTP 400. `CHECK`: the program is wrong; it prints
// the broken condition and aborts.
#pragma once

#include <stdexcept>
#include <string>

namespace gemma4 {

struct Error : std::runtime_error {
  explicit Error(const std::string& message);  // NUL is shown as \0: what() would end there
};

// A device has less memory left than is wanted; it still works.
struct OutOfMemory : Error {
  using Error::Error;
};

// A device that stopped working (not a bad request): the process ends with kExitDevice.
struct DeviceError : Error {
  using Error::Error;
};

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;    // the work was done and its result is bad: a test, an eval past its tolerance
constexpr int kExitBadInput = 2;  // Error
constexpr int kExitDevice = 3;    // DeviceError

[[noreturn]] void check_failed(const char* condition, const char* file, int line);

}  // namespace gemma4

#define CHECK(condition) ((condition) ? void(0) : ::gemma4::check_failed(#condition, __FILE__, __LINE__))
