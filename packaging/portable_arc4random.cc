// How does a program with libstdc++ inside run where the C library is older than the compiler's? GCC 12's
// std::random_device calls arc4random, which glibc has since 2.36. Nothing here makes a random_device, but the code of
// one is linked along with std::string's, and the loader wants every symbol. So the portable build brings its own
// (cmake/package.cmake).
#include <cstdint>

#include "base/random.h"

extern "C" uint32_t arc4random() noexcept { return static_cast<uint32_t>(gemma4::system_random()); }
